"""Generation: requests, outputs and the engine shared by evaluation, captioning and serving."""
