# Copyright 2026 The ee_seg_ros authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Start both nodes on one machine, with or without a camera.

`ros2 launch ee_seg_ros pair.launch.py --show-args` lists the arguments; `camera:=false image:=/front/image_raw` takes
the images of a camera that runs already.
"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from ee_seg_ros.environment import fastdds_profile


def generate_launch_description():
    """Declare the arguments, include both nodes, start the camera."""
    (profile_variable, profile), = fastdds_profile().items()
    share = FindPackageShare('ee_seg_ros')
    return LaunchDescription([
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the nodes and their topics'),
        DeclareLaunchArgument('bundle', default_value='',
                              description='Name of a shipped bundle, or path of a bundle folder; empty: as in the '
                                          'parameter files'),
        DeclareLaunchArgument('onboard_params_file', description='ROS parameter file of the onboard node',
                              default_value=PathJoinSubstitution([share, 'config', 'onboard.yaml'])),
        DeclareLaunchArgument('offboard_params_file', description='ROS parameter file of the offboard node',
                              default_value=PathJoinSubstitution([share, 'config', 'offboard.yaml'])),
        DeclareLaunchArgument('image', default_value='image', description='Topic of the camera images'),
        DeclareLaunchArgument('camera_info', default_value='camera_info',
                              description='Topic of the calibration of the camera, if it has one'),
        DeclareLaunchArgument('camera', default_value='true', choices=['true', 'false'],
                              description='Whether to start the camera node, which plays images from a source'),
        DeclareLaunchArgument('source', default_value='scenes', description='What the camera node plays: scenes, a '
                              'folder of images, a video file, or a rosbag2'),
        DeclareLaunchArgument('rate', default_value='10.0', description='Images per second of the camera node'),
        DeclareLaunchArgument('autostart', default_value='', choices=['', 'true', 'false'],
                              description='Whether the nodes configure and activate themselves, or wait for a '
                                          'lifecycle manager (false); empty: as in the parameter files'),
        DeclareLaunchArgument('respawn', default_value='true', choices=['true', 'false'],
                              description='Whether to start a node again, after 2 s, when its process ends; not the '
                                          'camera'),
        DeclareLaunchArgument('log_level', default_value='info', description='Log level: debug, info, warn, error'),
        DeclareLaunchArgument('local', default_value='false', choices=['true', 'false'],
                              description='Whether to keep all ROS traffic on this machine'),
        DeclareLaunchArgument(
            'fastdds_profile', default_value=EnvironmentVariable(profile_variable, default_value=profile),
            description='Fast DDS profile; the shipped one lets raw images through shared memory'),
        # What these two set in the environment holds for the camera as well.
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution([share, 'launch', 'onboard.launch.py'])),
            launch_arguments={
                'namespace': LaunchConfiguration('namespace'),
                'params_file': LaunchConfiguration('onboard_params_file'),
                'image': LaunchConfiguration('image'),
                'camera_info': LaunchConfiguration('camera_info'),
                'bundle': LaunchConfiguration('bundle'),
                'autostart': LaunchConfiguration('autostart'),
                'respawn': LaunchConfiguration('respawn'),
                'log_level': LaunchConfiguration('log_level'),
                'local': LaunchConfiguration('local'),
                'fastdds_profile': LaunchConfiguration('fastdds_profile'),
            }.items()),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution([share, 'launch', 'offboard.launch.py'])),
            launch_arguments={
                'namespace': LaunchConfiguration('namespace'),
                'params_file': LaunchConfiguration('offboard_params_file'),
                'bundle': LaunchConfiguration('bundle'),
                'autostart': LaunchConfiguration('autostart'),
                'respawn': LaunchConfiguration('respawn'),
                'log_level': LaunchConfiguration('log_level'),
                'local': LaunchConfiguration('local'),
                'fastdds_profile': LaunchConfiguration('fastdds_profile'),
            }.items()),
        Node(
            package='ee_seg_ros', executable='camera', name='camera', output='screen',
            condition=IfCondition(LaunchConfiguration('camera')),
            namespace=LaunchConfiguration('namespace'),
            parameters=[{
                'source': ParameterValue(LaunchConfiguration('source'), value_type=str),
                'rate': ParameterValue(LaunchConfiguration('rate'), value_type=float),
            }],
            remappings=[('image', LaunchConfiguration('image')), ('camera_info', LaunchConfiguration('camera_info'))],
            ros_arguments=['--log-level', LaunchConfiguration('log_level')],
        ),
    ])
