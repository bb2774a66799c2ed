"""mgpt: train, judge, promote and serve MiniGPT-4 and MiniGPT-v2."""
