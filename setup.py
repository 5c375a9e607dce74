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

from pathlib import Path
import re

from setuptools import Distribution, find_packages, setup

NAME = 'owseg_ros'

VERSION = re.search(
    r"^__version__ = '([^']+)'", Path(NAME, '__init__.py').read_text(), re.MULTILINE).group(1)

CONSOLE_SCRIPTS = {
    'camera': 'owseg_ros.entry:camera',
    'owseg': 'owseg_ros.entry:owseg',
    'owseg-train': 'owseg_training.entry:owseg_train',
    'perception': 'owseg_ros.entry:perception',
    'stack': 'owseg_ros.entry:stack',
}

EXECUTABLE = """\
#!/usr/bin/env python3
import sys

from {module} import {function}

sys.exit({function}())
"""


class InstallDataAndExecutables(Distribution().get_command_class('install_data')):
    """
    Install the data files and what `ros2 run` and launch start.

    They look in lib/owseg_ros, where `[install] install_scripts` of setup.cfg puts the console
    scripts under colcon. pip ignores that setting and uses bin, so a wheel needs them here too.
    """

    def run(self):
        super().run()
        folder = Path(self.install_dir, 'lib', NAME)
        if Path(self.get_finalized_command('install').install_scripts) == folder:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in CONSOLE_SCRIPTS.items():
            module, function = target.split(':')
            path = folder / name
            path.write_text(EXECUTABLE.format(module=module, function=function))
            path.chmod(0o755)
            self.outfiles.append(str(path))


def files_below(folder):
    """Return data_files rows that keep the folder's layout under share/owseg_ros."""
    rows = {}
    for path in sorted(Path(folder).rglob('*')):
        if path.is_file() and not any(part.startswith(('.', '__')) for part in path.parts):
            rows.setdefault(f'share/{NAME}/{path.parent.as_posix()}', []).append(path.as_posix())
    return sorted(rows.items())


setup(
    name=NAME,
    version=VERSION,
    description='Open-world perception for ROS 2: semantic and anomaly masks on topics.',
    long_description=Path('README.md').read_text() if Path('README.md').is_file() else '',
    long_description_content_type='text/markdown',
    author='owseg_ros contributors',
    maintainer='owseg_ros contributors',
    maintainer_email='maintainers@owseg-ros.invalid',
    license='Apache-2.0',
    keywords=['ROS', 'segmentation', 'anomaly detection', 'open world'],
    classifiers=[
        'Intended Audience :: Developers',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=[
        *find_packages(include=[NAME, f'{NAME}.*']),
        'owseg_training',
        *(f'owseg_training.{package}' for package in find_packages('training')),
    ],
    package_dir={'owseg_training': 'training'},
    package_data={
        NAME: ['schemas/*.json', 'nodes/*.xml', 'language/*.json', 'language/*.yaml'],
        'owseg_training': ['data/*.yaml', 'evaluate/*.yaml', 'recipes/*.yaml',
                           'recipes/sweeps/*.yaml'],
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        *files_below('launch'),
        *files_below('config'),
        # The Fast DDS profile, also for processes that are not ours.
        (f'share/{NAME}/config', [f'{NAME}/nodes/fastdds.xml']),
        *files_below('models'),
    ],
    zip_safe=False,
    # From what Ubuntu 22.04 has; ONNX Runtime 1.17 cannot read the bundled model.
    install_requires=[
        'jsonschema>=3.2',
        'numba>=0.55',
        'numpy>=1.21',
        'onnxruntime>=1.18',
        'opencv-python-headless>=4.5.4',
        'protobuf>=3.12',
        'PyYAML>=5.4',
        'rich>=10',
        'tokenizers>=0.19',
    ],
    extras_require={
        # ROS 2 Kilted as wheels, for machines without a ROS installation. Never on top of one.
        'ros': [
            'ros-kilted-diagnostic-msgs',
            'ros-kilted-geometry-msgs',
            'ros-kilted-lifecycle-msgs',
            'ros-kilted-rclpy',
            'ros-kilted-rmw-fastrtps-cpp',
            'ros-kilted-sensor-msgs',
            'ros-kilted-std-msgs',
            'ros-kilted-std-srvs',
            'ros-kilted-visualization-msgs',
        ],
        # onnxruntime-gpu shares its folder with onnxruntime: uninstall the latter first.
        'gpu': [
            'onnx>=1.16',
            'onnxruntime-gpu>=1.18',
            'tensorrt>=10',
            'torch>=2.4',
            # The readout on the GPU; it comes with torch's builds for CUDA.
            'triton>=3.3; platform_system == "Linux"',
        ],
        # Only to write the text encoder that queries need: owseg text-encoder.
        'language': [
            'onnx>=1.16',
            'safetensors>=0.4',
        ],
        'training': [
            'matplotlib>=3.6',
            'onnx>=1.16',
            'onnxscript',
            'pillow>=9.1',
            'safetensors>=0.4',
            'scikit-learn',
            'scipy>=1.15',
            'tensorboard',
            'timm>=1.0',
            'torch>=2.4',
            'tqdm',
            'transformers>=5',
        ],
        # CLIP: image towers as backbones, text towers for owseg-train text-encoder open-clip.
        'clip': [
            'open_clip_torch>=3',
        ],
        'test': [
            'catkin_pkg',
            'flake8',
            'flake8-blind-except',
            'flake8-builtins',
            'flake8-class-newline',
            'flake8-comprehensions',
            'flake8-deprecated',
            'flake8-docstrings',
            'flake8-import-order',
            'flake8-quotes',
            'hypothesis',
            'onnx>=1.16',
            'pydocstyle',
            # 8.4 breaks launch_pytest, 9 breaks launch_testing.
            'pytest>=7.4,<8.4',
            'pytest-timeout',
            # The tests of training on two cores; those of nodes watch the time and run alone.
            'pytest-xdist',
            'safetensors>=0.4',
            'scikit-learn',
            'setuptools',
            # The reference of the converters; its tests skip where it is missing.
            'transformers>=5',
            # The kernel of the readout on the GPU runs in its interpreter.
            'triton>=3.3; platform_system == "Linux" and platform_machine == "x86_64"',
        ],
    },
    cmdclass={'install_data': InstallDataAndExecutables},
    entry_points={
        'console_scripts': [f'{name} = {target}' for name, target in CONSOLE_SCRIPTS.items()],
    },
)
