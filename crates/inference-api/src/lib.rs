//! InferencePool, InferenceModel and the Gateway API objects: types, parsing, header and metadata keys.
