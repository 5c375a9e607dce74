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
A model on disk: a folder with a network, its classes, its thresholds and its checksums.

A bundle is a folder with a ``manifest.yaml`` (``schemas/bundle.schema.json`` documents each key)
and the files that the manifest lists with their sha256.  ``load_bundle`` validates all of it
before anything is used; it reads YAML with a safe loader and never unpickles.
"""

from owseg_ros.bundle.files import sha256_of
from owseg_ros.bundle.installed import default_bundle_path
from owseg_ros.bundle.manifest import SCHEMA, SCHEMA_VERSION
from owseg_ros.bundle.model import (
    AnomalySpec, Bundle, ClassInfo, ClassStatistics, EnsembleInfo, InputSpec, LanguageInfo,
    NoveltyInfo, SameMeaning, UNKNOWN_COLOR, UNKNOWN_ID, UNLABELLED_COLOR, UNLABELLED_ID)
from owseg_ros.bundle.problems import BundleError, MANIFEST
from owseg_ros.bundle.store import load_bundle, manifest_of, write_bundle

__all__ = [
    'AnomalySpec', 'Bundle', 'BundleError', 'ClassInfo', 'ClassStatistics', 'default_bundle_path',
    'EnsembleInfo', 'InputSpec', 'LanguageInfo', 'load_bundle', 'MANIFEST', 'manifest_of',
    'NoveltyInfo', 'SameMeaning', 'SCHEMA', 'SCHEMA_VERSION', 'sha256_of', 'UNKNOWN_COLOR',
    'UNKNOWN_ID', 'UNLABELLED_COLOR', 'UNLABELLED_ID', 'write_bundle']
