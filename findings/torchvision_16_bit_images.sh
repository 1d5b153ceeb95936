#!/usr/bin/env bash
# torchvision 0.29.1 with torch 2.14.1 and pillow 13.0.0
#
# Behaviour: ImageFolder reads pixels of grey 16-bit images as white if they exceed 255 of 65535.
# ToTensor gives int16, which is negative from 32768 on and not scaled to [0, 1]; v2.ToImage gives
# uint16. When converted to uint16, white (1.0) becomes 0, and 8-bit white becomes 65280. uint16 tensors
# have no comparison and no min. A uint8 image loses levels when converted to float16 and back.
# One would have guessed: levels keep their order; 1.0 becomes 65535; ToTensor scales as documented;
# uint16 has the operations of uint8; 11 bits of precision keep 8.
# Output seen:
#   levels 0, 255, 1000, 65535: ImageFolder 0, 255, 255, 255
#   levels 0, 255, 1000, 65535: ToTensor 0, 255, 1000, -1 (torch.int16)
#   levels 0, 255, 1000, 65535: v2.ToImage 0, 255, 1000, 65535 (torch.uint16)
#   scaled to uint16: 0.0, 0.5, 1.0 are 0, 32768, 0; 8-bit white is 65280
#   operations of uint16 that raise: lt, min
#   8-bit levels that change by way of float32 0, float16 16, bfloat16 128
source "$(dirname "$0")/venv.sh"
install 'torch==2.14.1' 'torchvision==0.29.1' 'pillow==13.0.0' numpy
run "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

levels = [0, 255, 1000, 65535]
images = Path(sys.argv[1]) / "images"
(images / "grey").mkdir(parents=True)
Image.fromarray(np.array([levels], np.uint16)).save(images / "grey" / "levels.png")
image = Image.open(images / "grey" / "levels.png")
shown = f"levels {', '.join(map(str, levels))}:"

(folder_image, _), *_ = ImageFolder(images)
read = np.asarray(folder_image)[0, :, 0].tolist()
print(shown, "ImageFolder", ", ".join(map(str, read)))
tensors = {"ToTensor": transforms.ToTensor()(image), "v2.ToImage": v2.ToImage()(image)}
values = {name: tensor.flatten().tolist() for name, tensor in tensors.items()}
for name, tensor in tensors.items():
    print(shown, name, ", ".join(map(str, values[name])), f"({tensor.dtype})")

to_dtype = v2.functional.to_dtype
greys = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 3)
white = torch.tensor([[[255]]], dtype=torch.uint8)
scaled = to_dtype(greys, torch.uint16, scale=True).flatten().tolist()
scaled.append(to_dtype(white, torch.uint16, scale=True).item())
print("scaled to uint16: 0.0, 0.5, 1.0 are {}, {}, {}; 8-bit white is {}".format(*scaled))


def raises(operation):
    try:
        operation(torch.zeros(3, dtype=torch.uint16))
    except NotImplementedError:
        return True
    return False


operations = {"lt": lambda t: t < 3, "min": torch.min, "eq": lambda t: t == t}
missing = [name for name, operation in operations.items() if raises(operation)]
print(f"operations of uint16 that raise: {', '.join(missing)}")

all_levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
changed = [
    int((to_dtype(to_dtype(all_levels, kind, scale=True), torch.uint8, scale=True) != all_levels).sum())
    for kind in (torch.float32, torch.float16, torch.bfloat16)
]
print("8-bit levels that change by way of float32 {}, float16 {}, bfloat16 {}".format(*changed))
sys.exit(
    read != [0, 255, 255, 255]
    or values != {"ToTensor": [0, 255, 1000, -1], "v2.ToImage": levels}
    or scaled != [0, 32768, 0, 65280]
    or missing != ["lt", "min"]
    or changed != [0, 16, 128]
)
PYTHON
