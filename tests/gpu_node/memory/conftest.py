from tests.gpu_node.engine.layers.conftest import kernels

__all__ = ["kernels"]
