"""Launch: the deployment folder assembled from the artifacts, and a model server started on it."""
