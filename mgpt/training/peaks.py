"""What GPUs are sold with: for MFU of a run, and for plans, which import no torch."""

# Dense FLOPs a second by precision, NVIDIA's data sheets, SXM form; by a part of the device's name. float32 as TF32.
_A100 = {"fp32": 156e12, "bf16": 312e12, "fp16": 312e12}
_HOPPER = {"fp32": 495e12, "bf16": 989e12, "fp16": 989e12}
PEAK_FLOPS = {"A100": _A100, "H100": _HOPPER, "H200": _HOPPER}
