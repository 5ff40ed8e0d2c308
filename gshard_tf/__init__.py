"""GShard on TensorFlow: annotated models, partitioned by XLA."""
