"""An embedded model server that behaves as TensorFlow Serving does.

Run it with `python -m launchpad.modelserver --rest_api_port=8501 --model_config_file=models.config`.
"""
