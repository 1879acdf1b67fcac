"""The parts of planned memory, as a run's manifest names them, in words for people."""

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
