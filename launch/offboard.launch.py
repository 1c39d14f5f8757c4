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
"""Start the offboard node. `ros2 launch ee_seg_ros offboard.launch.py --show-args` lists the arguments."""
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from ee_seg_ros.environment import fastdds_profile, local_range


def start(context):
    """The node; what is given as an argument wins over the parameter file, which holds for what is not."""
    bundle = LaunchConfiguration('bundle').perform(context)
    autostart = LaunchConfiguration('autostart').perform(context)
    robots = LaunchConfiguration('robots').perform(context)
    params_file = LaunchConfiguration('params_file').perform(context)
    if not Path(params_file).is_file():    # of which launch_ros warns, and goes on without
        raise FileNotFoundError(f'params_file {params_file} is no file: give a ROS parameter file')
    wins = {}
    if bundle:
        wins['bundle'] = ParameterValue(bundle, value_type=str)    # a folder named 2024 is no number
    if autostart:
        wins['autostart'] = autostart == 'true'
    if robots:
        wins['robots'] = robots.split(',')
    return [Node(
        package='ee_seg_ros', executable='offboard', name='ee_seg_offboard', output='screen',
        namespace=LaunchConfiguration('namespace'),
        parameters=[params_file, wins],
        ros_arguments=['--log-level', LaunchConfiguration('log_level')],
        respawn=LaunchConfiguration('respawn'), respawn_delay=2.0,
    )]


def generate_launch_description():
    """Declare the arguments, set the environment, start the node."""
    (profile_variable, profile), = fastdds_profile().items()
    (range_variable, local), = local_range().items()
    return LaunchDescription([
        DeclareLaunchArgument('namespace', default_value='',
                              description='Namespace of the node and its topics: that of the robot it serves'),
        DeclareLaunchArgument(
            'params_file', description='ROS parameter file of the node',
            default_value=PathJoinSubstitution([FindPackageShare('ee_seg_ros'), 'config', 'offboard.yaml'])),
        DeclareLaunchArgument('bundle', default_value='',
                              description='Name of a shipped bundle, or path of a bundle folder; empty: as in '
                                          'params_file'),
        DeclareLaunchArgument('robots', default_value='',
                              description='Namespaces of the robots to serve, as in robot1,robot2; empty: as in '
                                          'params_file, which says the own one'),
        DeclareLaunchArgument('autostart', default_value='', choices=['', 'true', 'false'],
                              description='Whether the node configures and activates itself, or waits for a lifecycle '
                                          'manager (false); empty: as in params_file'),
        DeclareLaunchArgument('respawn', default_value='true', choices=['true', 'false'],
                              description='Whether to start the node again, after 2 s, when its process ends'),
        DeclareLaunchArgument('log_level', default_value='info', description='Log level: debug, info, warn, error'),
        DeclareLaunchArgument('local', default_value='false', choices=['true', 'false'],
                              description='Whether to keep all ROS traffic on this machine'),
        DeclareLaunchArgument(
            'fastdds_profile', default_value=EnvironmentVariable(profile_variable, default_value=profile),
            description='Fast DDS profile; the shipped one lets raw images through shared memory'),
        SetEnvironmentVariable(range_variable, local, condition=IfCondition(LaunchConfiguration('local'))),
        SetEnvironmentVariable(profile_variable, LaunchConfiguration('fastdds_profile')),
        OpaqueFunction(function=start),
    ])
