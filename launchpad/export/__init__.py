"""Export: a Keras model to a SavedModel with preprocessing inside, verified the way the server loads it."""
