//! What names, labels and annotations may be.

/// DNS-1123 subdomain (most names): lower case, digits, `-`, `.`; at most 253. `Err` is upstream's message.
pub fn dns1123_subdomain(s: &str) -> Result<(), String> {
    let _ = s;
    todo!()
}

/// DNS-1123 label (namespaces, services, containers): at most 63.
pub fn dns1123_label(s: &str) -> Result<(), String> {
    let _ = s;
    todo!()
}

/// Qualified name (label and annotation keys): `[prefix/]name`.
pub fn qualified_name(s: &str) -> Result<(), String> {
    let _ = s;
    todo!()
}

/// Label value: at most 63, may be empty.
pub fn label_value(s: &str) -> Result<(), String> {
    let _ = s;
    todo!()
}

/// Path segment name (RBAC objects): not `.`/`..`, no `/` or `%`.
pub fn path_segment(s: &str) -> Result<(), String> {
    let _ = s;
    todo!()
}
