"""From a trained model to text and scores; needs JAX, and neither TensorFlow nor Lingvo."""
