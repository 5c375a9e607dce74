# Copyright 2026 owseg_ros contributors
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
"""
Show the package without a camera: perception on the procedural street, in RViz.

Examples
--------
    ros2 launch owseg_ros demo.launch.py
    ros2 launch owseg_ros demo.launch.py camera:=drive.mp4 rviz:=false

"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = (
    DeclareLaunchArgument(
        'camera', default_value='scene',
        description='What the camera shows: scene (a procedural street), a video file, a folder '
                    'of images, an image or webcam:0.'),
    DeclareLaunchArgument(
        'model', default_value='',
        description='Folder of the model bundle; empty: the bundled one.'),
    DeclareLaunchArgument(
        'queries', default_value='automobile, traffic cone',
        description='What to ask for in words from the start; ask for something else with: '
                    'owseg query "greenery, footpath".'),
    DeclareLaunchArgument(
        'namespace', default_value='', description='Namespace of the nodes.'),
    DeclareLaunchArgument(
        'rviz', default_value='true', choices=['true', 'false'],
        description='Open RViz, where there is a display.'),
    DeclareLaunchArgument(
        'log_level', default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='Least severe log messages that the nodes show.'),
)


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the launch of perception with a camera."""
    perception = PathJoinSubstitution(
        [FindPackageShare('owseg_ros'), 'launch', 'perception.launch.py'])
    return LaunchDescription([
        *ARGUMENTS,
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(perception),
            launch_arguments=[
                (argument.name, LaunchConfiguration(argument.name)) for argument in ARGUMENTS]),
    ])
