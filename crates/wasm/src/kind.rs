//! What a WebAssembly file is: read from its outer sections, before anything is compiled.

use wasmparser::{Encoding, ExternalKind, Parser, Payload};

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// Exports `wasi:http/incoming-handler@0.2.x`.
    Http02,
    /// Exports `wasi:http/handler@0.3.x`.
    Http03,
    /// Exports `wasi:cli/run@0.2.x`.
    Command02,
    /// Exports `wasi:cli/run@0.3.x`.
    Command03,
    /// A core module with `_start` that imports `wasi_snapshot_preview1`.
    CommandPreview1,
}

/// Which engine a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    Plain,
    Concurrent,
}

/// Why a file can't be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// Not WebAssembly, cut short or broken.
    #[error("read WebAssembly: {0}")]
    Malformed(String),
    /// Its exports or imports fit nothing that a pod can run.
    #[error("run WebAssembly: {0}")]
    Unsupported(String),
}

impl GuestKind {
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::Http02 | Self::Command02 | Self::CommandPreview1 => Dialect::Plain,
            Self::Http03 | Self::Command03 => Dialect::Concurrent,
        }
    }

    /// Whether it serves HTTP (and otherwise runs to its end).
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http02 | Self::Http03)
    }

    /// Reads the kind of a binary.
    ///
    /// # Errors
    /// When it is cut short, broken, or nothing that a pod can run.
    pub fn of(wasm: &[u8]) -> Result<Self, KindError> {
        if !wasm.starts_with(b"\0asm") {
            return Err(KindError::Malformed(
                "the file does not begin as WebAssembly does".into(),
            ));
        }
        let outer = Outer::read(wasm)?;
        match outer.encoding {
            Encoding::Component => component(&outer),
            Encoding::Module => module(&outer),
        }
    }
}

struct Outer<'a> {
    encoding: Encoding,
    /// Module or interface names, each once.
    imports: Vec<&'a str>,
    exports: Vec<&'a str>,
}

fn component(outer: &Outer<'_>) -> Result<GuestKind, KindError> {
    let exports = |prefix: &str| outer.exports.iter().any(|name| name.starts_with(prefix));
    // 0.3 uses concurrency even when only an import is of that version.
    let concurrent = outer
        .imports
        .iter()
        .any(|name| name.starts_with("wasi:") && name.contains("@0.3."));
    if exports("wasi:http/handler@0.3.") {
        Ok(GuestKind::Http03)
    } else if exports("wasi:http/incoming-handler@0.2.") && !concurrent {
        Ok(GuestKind::Http02)
    } else if exports("wasi:cli/run@0.3.") {
        Ok(GuestKind::Command03)
    } else if exports("wasi:cli/run@0.2.") && !concurrent {
        Ok(GuestKind::Command02)
    } else {
        let names = if outer.exports.is_empty() {
            "nothing".into()
        } else {
            outer.exports.join(", ")
        };
        Err(KindError::Unsupported(format!(
            "the component exports {names}; a pod runs \"wasi:http/incoming-handler@0.2\", \
             \"wasi:http/handler@0.3\" or \"wasi:cli/run\" of either version"
        )))
    }
}

fn module(outer: &Outer<'_>) -> Result<GuestKind, KindError> {
    if outer.imports.contains(&"wasi_unstable") {
        return Err(KindError::Unsupported(
            "the module imports \"wasi_unstable\", an early draft of WASI that this host does \
             not provide; build it for \"wasi_snapshot_preview1\" (wasm32-wasip1) or newer"
                .into(),
        ));
    }
    if !outer.exports.contains(&"_start") {
        return Err(KindError::Unsupported(
            "the module exports no \"_start\" function, so it is a library and no program".into(),
        ));
    }
    Ok(GuestKind::CommandPreview1)
}

impl<'a> Outer<'a> {
    fn read(wasm: &'a [u8]) -> Result<Self, KindError> {
        let mut outer = Self {
            encoding: Encoding::Module,
            imports: Vec::new(),
            exports: Vec::new(),
        };
        let broken = |error: wasmparser::BinaryReaderError| {
            KindError::Malformed(format!("{} at byte {}", error.message(), error.offset()))
        };
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.map_err(broken)? {
                Payload::Version { encoding, .. } if depth == 0 => outer.encoding = encoding,
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                _ if depth > 0 => {}
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        outer.import(import.map_err(broken)?.module);
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export.map_err(broken)?;
                        if export.kind == ExternalKind::Func {
                            outer.exports.push(export.name);
                        }
                    }
                }
                Payload::ComponentImportSection(section) => {
                    for import in section {
                        outer.import(import.map_err(broken)?.name.name);
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section {
                        outer.exports.push(export.map_err(broken)?.name.name);
                    }
                }
                _ => {}
            }
        }
        Ok(outer)
    }

    fn import(&mut self, name: &'a str) {
        if self.imports.last() != Some(&name) {
            self.imports.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(wat: &str, expect: Expect) {
        let said = match GuestKind::of(&wat::parse_str(wat).unwrap()) {
            Ok(kind) => format!("{kind:?}"),
            Err(error) => error.to_string(),
        };
        expect.assert_eq(&said);
    }

    #[test]
    fn kinds() {
        let run = |name: &str| {
            format!(
                r#"(component (component $c
                     (core module $m (func (export "x")))) (instance $i (instantiate $c))
                     (export "{name}" (instance $i)))"#
            )
        };
        check(&run("wasi:http/incoming-handler@0.2.3"), expect!["Http02"]);
        check(&run("wasi:http/handler@0.3.0"), expect!["Http03"]);
        check(&run("wasi:cli/run@0.2.0"), expect!["Command02"]);
        check(&run("wasi:cli/run@0.3.0"), expect!["Command03"]);
        check(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
                 (func (export "_start")))"#,
            expect!["CommandPreview1"],
        );
        check(
            "(component)",
            expect![[
                r#"run WebAssembly: the component exports nothing; a pod runs "wasi:http/incoming-handler@0.2", "wasi:http/handler@0.3" or "wasi:cli/run" of either version"#
            ]],
        );
        check(
            r#"(module (import "wasi_unstable" "proc_exit" (func (param i32)))
                 (func (export "_start")))"#,
            expect![[
                r#"run WebAssembly: the module imports "wasi_unstable", an early draft of WASI that this host does not provide; build it for "wasi_snapshot_preview1" (wasm32-wasip1) or newer"#
            ]],
        );
        check(
            r#"(module (func (export "add")))"#,
            expect![[
                r#"run WebAssembly: the module exports no "_start" function, so it is a library and no program"#
            ]],
        );
    }

    #[test]
    fn every_cut_of_a_module_is_an_error() {
        let whole = wat::parse_str(r#"(module (func (export "_start") (nop)))"#).unwrap();
        assert!(GuestKind::of(&whole).is_ok());
        for end in 0..whole.len() {
            assert!(GuestKind::of(&whole[..end]).is_err(), "cut at {end}");
        }
        assert!(GuestKind::of(b"#!/bin/sh\n").is_err());
    }
}
