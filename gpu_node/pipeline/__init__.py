"""One model over several devices: a worker process each, and the links that carry tensors between them."""
