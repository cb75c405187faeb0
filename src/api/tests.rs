//! The api over a real socket.
