//! The shipper and the receiver together: what a builder logs is what a reader sees.
