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
"""The parts of the training loss on validation frames: semantics and masks (RbA figure 7b)."""

from __future__ import annotations

from owseg_training.analysis.run import frames, Run
from owseg_training.data.hidden import open_split
from owseg_training.losses import SetCriterion
import torch


@torch.inference_mode()
def validation_losses(run: Run) -> dict[str, float]:
    """
    Mean losses of a run's last prediction over the frames of its split val, without weights.

    Returns class (cross entropy of the queries' classes), mask (binary cross entropy) and dice.
    Queries are matched and points sampled as in training, with the index of the frame as seed.
    Raises DataError when the data set is missing.
    """
    loss = run.config.loss
    data_set = open_split(run.config.data, 'val')
    criterion = SetCriterion(loss, run.network.num_classes, run.config.network.outlier_class)
    weights = {'class': loss.class_weight, 'mask': loss.mask_weight, 'dice': loss.dice_weight}
    sums = dict.fromkeys(weights, 0.0)
    for index, item in enumerate(frames(data_set, None, 'losses')):
        image, label = data_set.read(item)
        picture = run.stretch(image)
        criterion.to(picture.device)
        losses = criterion(run.network(picture),
                           torch.from_numpy(label)[None].to(picture.device), seeds=[index])
        for name, weight in weights.items():
            sums[name] += losses[name].item() / weight
    return {name: value / len(data_set.items) for name, value in sums.items()}
