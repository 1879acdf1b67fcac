"""Labels of the parts of planned memory, by their names in a run's manifest."""

LABELS = {
    "weights": "weights and copies in the compute type",
    "master_weights": "master weights",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "adapter_states": "adapter with its gradients and states",
    "quantised_base": "quantised base",
    "activations": "activations",
    "logits": "logits",
    "communication": "communication buffers",
    "framework": "CUDA, libraries, fragmentation",
}
