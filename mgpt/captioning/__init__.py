"""The second-stage data of MiniGPT-4: descriptions written by the pretrained model, repaired, filtered and reviewed."""
