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
Start perception, with a camera node in the same process when a source is named.

Examples
--------
    ros2 launch owseg_ros perception.launch.py image:=/front/image_raw
    ros2 launch owseg_ros perception.launch.py namespace:=front camera:=webcam:0 rviz:=true

"""

import os

from ament_index_python.packages import get_package_prefix, PackageNotFoundError
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = (
    DeclareLaunchArgument(
        'namespace', default_value='',
        description='Namespace of the nodes; topics are relative to it.'),
    DeclareLaunchArgument(
        'model', default_value='',
        description='Folder of the model bundle; empty: as in params_file.'),
    DeclareLaunchArgument(
        'image', default_value='image',
        description='Image topic, without /compressed. For several cameras set the parameter '
                    'cameras in params_file instead.'),
    DeclareLaunchArgument(
        'image_transport', default_value='', choices=['', 'raw', 'compressed'],
        description='Subscribe to the raw or the compressed topic; empty: as in params_file.'),
    DeclareLaunchArgument(
        'params_file',
        default_value=PathJoinSubstitution(
            [FindPackageShare('owseg_ros'), 'config', 'perception.yaml']),
        description='Parameters of the nodes; the other arguments win over it.'),
    DeclareLaunchArgument(
        'engine', default_value='',
        description='What runs the network, such as onnx; empty: as in params_file.'),
    DeclareLaunchArgument(
        'camera', default_value='',
        description='Source of a camera node in the same process: scene (a procedural street), '
                    'a video file, a folder of images, an image or webcam:0. Empty: none, the '
                    'camera is there already.'),
    DeclareLaunchArgument(
        'queries', default_value='',
        description='What to ask for in words from the start, as on the topic query: a comma list '
                    'or JSON.'),
    DeclareLaunchArgument(
        'prototypes', default_value='',
        description='File of classes that the model was taught by example; empty: as in '
                    'params_file.'),
    DeclareLaunchArgument(
        'autostart', default_value='true', choices=['true', 'false'],
        description='Configure and activate perception; false leaves it to a lifecycle manager.'),
    DeclareLaunchArgument(
        'respawn', default_value='false', choices=['true', 'false'],
        description='Start the nodes again, after 2 s, when their process ends by itself.'),
    DeclareLaunchArgument(
        'use_sim_time', default_value='false', choices=['true', 'false'],
        description='Take the time from /clock, for simulation and bags.'),
    DeclareLaunchArgument(
        'rviz', default_value='false', choices=['true', 'false'],
        description='Open RViz with the layout of the package, where there is a display.'),
    DeclareLaunchArgument(
        'log_level', default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='Least severe log messages that the nodes show.'),
)

RVIZ_TOPICS = ('image', 'semantic/color', 'anomaly/score', 'anomaly/mask', 'overlay')


def transport_environment() -> list:
    """
    Return actions that give every process from here on the shared-memory profile.

    Nodes of the package do that themselves; this is for what is launched with them. Where the
    launch runs in another Python than the nodes, the package does not import, and nothing is set.
    """
    try:
        from owseg_ros.nodes import transport
    except ImportError:
        return []
    environment = dict(os.environ)
    transport.prepare(environment)
    return [
        SetEnvironmentVariable(name, environment[name]) for name in transport.PROFILE_VARIABLES
        if environment.get(name, '') != os.environ.get(name, '')]


def rviz(namespace: str, image: str, use_sim_time: bool) -> list:
    """Return RViz with the layout of the package, or a line that says why there is none."""
    if not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        return [LogInfo(msg='rviz:=true, but there is no display: RViz is not started')]
    try:
        get_package_prefix('rviz2')
    except PackageNotFoundError:
        return [LogInfo(msg='rviz:=true, but rviz2 is not installed: '
                            'apt install ros-$ROS_DISTRO-rviz2')]
    layout = PathJoinSubstitution([FindPackageShare('owseg_ros'), 'config', 'owseg.rviz'])
    return [Node(
        package='rviz2', executable='rviz2', name='rviz', namespace=namespace,
        arguments=['-d', layout], parameters=[{'use_sim_time': use_sim_time}],
        # The layout has absolute names, so that it also opens by itself.
        remappings=[(f'/{topic}', image if topic == 'image' else topic)
                    for topic in RVIZ_TOPICS])]


def start(context: LaunchContext) -> list:
    """Return the actions for the arguments of this launch."""
    given = {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in ARGUMENTS}
    if not os.path.isfile(given['params_file']):
        # launch_ros would warn, and start the nodes without it.
        raise RuntimeError(f'params_file: there is no file {given["params_file"]}')
    use_sim_time = given['use_sim_time'] == 'true'
    parameters = {
        'autostart': given['autostart'] == 'true',
        'use_sim_time': use_sim_time}
    for name in ('model', 'image_transport', 'engine'):
        if given[name]:
            parameters[name] = given[name]
    if given['queries']:
        # A text, also where it reads like YAML.
        parameters['queries'] = ParameterValue(given['queries'], value_type=str)
    if given['prototypes']:
        parameters['prototypes'] = ParameterValue(given['prototypes'], value_type=str)
    if given['camera']:
        parameters['source'] = given['camera']
    remappings = []
    if given['image'] != 'image':
        remappings = [('image', given['image']),
                      ('image/compressed', f'{given["image"]}/compressed')]
    actions = transport_environment()
    # One process for all nodes. It has no name here: that would rename each of them.
    actions.append(Node(
        package='owseg_ros', executable='stack' if given['camera'] else 'perception',
        namespace=given['namespace'], parameters=[given['params_file'], parameters],
        remappings=remappings, ros_arguments=['--log-level', given['log_level']],
        respawn=given['respawn'] == 'true', respawn_delay=2.0,
        output='screen', emulate_tty=True))
    if given['rviz'] == 'true':
        actions += rviz(given['namespace'], given['image'], use_sim_time)
    return actions


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what starts from them."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
