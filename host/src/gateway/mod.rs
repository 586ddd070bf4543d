//! The edge: HTTP, authentication, problems, OpenAPI.
