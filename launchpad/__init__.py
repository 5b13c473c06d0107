"""tfs-launchpad: from a Keras model to a tuned, load-tested, release-checked TensorFlow Serving deployment."""
