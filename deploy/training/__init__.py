"""What turns a labelled snapshot into a model version: feature encoding and the training run, both pure."""
