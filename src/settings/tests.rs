//! Layers, origins, rules.
