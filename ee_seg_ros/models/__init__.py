"""torch models: backbones, exit heads, the multi-exit network, the feature bottleneck, export to a bundle."""
