"""One module a stage, named as the stage: inputs, one or two calls into mgpt, outputs."""
