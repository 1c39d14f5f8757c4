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
"""The pair, a camera and the node ground on this machine only, shown in rviz; no robot is needed."""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    """Declare the arguments, include the pair and ground, start rviz."""
    share = FindPackageShare('ee_seg_ros')
    return LaunchDescription([
        DeclareLaunchArgument('source', default_value='scenes', description='What the camera node plays: scenes, a '
                              'folder of images, a video file, or a rosbag2'),
        DeclareLaunchArgument('rate', default_value='10.0', description='Images per second of the camera node'),
        DeclareLaunchArgument('bundle', default_value='street',
                              description='Name of a shipped bundle, or path of a bundle folder'),
        DeclareLaunchArgument('rviz', default_value='true', choices=['true', 'false'],
                              description='Whether to show what the nodes publish in rviz'),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution([share, 'launch', 'pair.launch.py'])),
            launch_arguments={
                'source': LaunchConfiguration('source'),
                'rate': LaunchConfiguration('rate'),
                'bundle': LaunchConfiguration('bundle'),
                'local': 'true',
            }.items()),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution([share, 'launch', 'ground.launch.py'])),
            launch_arguments={
                'bundle': LaunchConfiguration('bundle'),
                # Else they are what the pair was given.
                'params_file': PathJoinSubstitution([share, 'config', 'ground.yaml']),
                'camera_info': 'ee_seg/camera_info',
            }.items()),
        Node(
            package='rviz2', executable='rviz2', name='rviz', output='log',
            condition=IfCondition(LaunchConfiguration('rviz')),
            arguments=['-d', PathJoinSubstitution([share, 'config', 'ee_seg.rviz'])],
        ),
    ])
