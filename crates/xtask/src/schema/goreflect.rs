//! Struct types of a Go program, read from the type information that the program itself
//! carries for reflection: field names, types and tags. Kubernetes puts its JSON names,
//! protobuf numbers and patch strategies into tags, so `kubectl` knows them all exactly.
//!
//! Reads 64-bit little-endian ELF of Go 1.18 to 1.26 (layouts of `internal/abi`).

use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A Go type as far as object types need it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Go {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    Interface,
    /// A named or anonymous struct, by its full name such as `k8s.io/api/core/v1.Pod`.
    Struct(String),
    Pointer(Box<Go>),
    Slice(Box<Go>),
    Map(Box<Go>),
    /// One byte, as in `[]byte`.
    Byte,
    /// Anything that no object type uses.
    Other,
}

/// A field of a Go struct.
#[derive(Clone, Debug)]
pub(crate) struct GoField {
    pub(crate) name: String,
    pub(crate) ty: Go,
    pub(crate) tag: String,
    pub(crate) embedded: bool,
}

impl GoField {
    /// One key of the field's tag.
    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        let mut rest = self.tag.as_str();
        loop {
            let (k, tail) = rest.trim_start().split_once(":\"")?;
            let (v, tail) = tail.split_once('"')?;
            if k == key {
                return Some(v);
            }
            rest = tail;
        }
    }
}

/// Struct types by full name.
pub(crate) type GoStructs = BTreeMap<String, Vec<GoField>>;

/// All struct types that a program's type links lead to.
pub(crate) fn structs(file: &[u8]) -> Result<GoStructs> {
    let image = Image::parse(file)?;
    let links = image
        .sections
        .get(".typelink")
        .context("no .typelink section: not a Go 1.18 to 1.26 program")?;
    let links: Vec<u64> = file[links.offset..links.offset + links.size]
        .chunks_exact(4)
        .map(|c| u64::from(u32::from_le_bytes([c[0], c[1], c[2], c[3]])))
        .collect();
    let base = image.types_base(&links)?;
    let reader = Reader { image, base };
    let mut out = GoStructs::new();
    let mut seen = HashSet::new();
    let mut todo: Vec<u64> = links.iter().map(|l| base + l).collect();
    while let Some(at) = todo.pop() {
        if seen.insert(at) {
            reader.visit(at, &mut todo, &mut out)?;
        }
    }
    Ok(out)
}

struct Section {
    address: u64,
    offset: usize,
    size: usize,
}

struct Image<'a> {
    file: &'a [u8],
    sections: HashMap<String, Section>,
}

impl<'a> Image<'a> {
    fn parse(file: &'a [u8]) -> Result<Self> {
        ensure!(
            file.starts_with(b"\x7fELF\x02\x01"),
            "not a 64-bit little-endian ELF file"
        );
        let half = |at: usize| -> Result<usize> {
            let b = file.get(at..at + 2).context("ELF header cut short")?;
            Ok(usize::from(u16::from_le_bytes([b[0], b[1]])))
        };
        let (entry, count, names) = (half(0x3a)?, half(0x3c)?, half(0x3e)?);
        let table = word(file, 0x28)? as usize;
        let header = |i: usize| -> Result<(usize, Section)> {
            let at = table + i * entry;
            let section = Section {
                address: word(file, at + 16)?,
                offset: word(file, at + 24)? as usize,
                size: word(file, at + 32)? as usize,
            };
            Ok(((word(file, at)? & 0xffff_ffff) as usize, section))
        };
        let names_at = header(names)?.1.offset;
        let mut sections = HashMap::new();
        for i in 0..count {
            let (name, section) = header(i)?;
            let text = &file[names_at + name..];
            let end = text.iter().position(|b| *b == 0).unwrap_or(0);
            sections.insert(String::from_utf8_lossy(&text[..end]).into_owned(), section);
        }
        Ok(Self { file, sections })
    }

    fn offset(&self, address: u64) -> Result<usize> {
        self.sections
            .values()
            .filter(|s| s.address != 0 && s.offset < self.file.len())
            .find(|s| (s.address..s.address + s.size as u64).contains(&address))
            .map(|s| s.offset + (address - s.address) as usize)
            .with_context(|| format!("address {address:#x} is in no section"))
    }

    fn word_at(&self, address: u64) -> Result<u64> {
        word(self.file, self.offset(address)?)
    }

    fn int_at(&self, address: u64) -> Result<i64> {
        let at = self.offset(address)?;
        let b = self.file.get(at..at + 4).context("file cut short")?;
        Ok(i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
    }

    fn byte_at(&self, address: u64) -> Result<u8> {
        let at = self.offset(address)?;
        self.file.get(at).copied().context("file cut short")
    }

    /// The module data says where types start, at a place that differs between Go versions:
    /// take the word for which all type links name printable types.
    fn types_base(&self, links: &[u64]) -> Result<u64> {
        let module = &self.sections[".go.module"];
        let data = &self.sections[".rodata"];
        let plausible = |base: u64| {
            links.iter().take(200).all(|link| {
                self.int_at(base + link + 40)
                    .and_then(|name| self.name(base.wrapping_add_signed(name)))
                    .is_ok_and(|(_, name, _)| {
                        !name.is_empty() && name.chars().all(|c| !c.is_control())
                    })
            })
        };
        (module.offset..module.offset + module.size)
            .step_by(8)
            .filter_map(|at| word(self.file, at).ok())
            .filter(|w| (data.address..data.address + data.size as u64).contains(w))
            .find(|w| plausible(*w))
            .context("find where the program's types start")
    }

    /// Flags, name and tag of a `abi.Name`.
    fn name(&self, address: u64) -> Result<(u8, String, String)> {
        let at = self.offset(address)?;
        let flags = self.file[at];
        let mut rest = self.file.get(at + 1..).context("file cut short")?;
        let mut text = || -> Result<String> {
            let mut len = 0usize;
            for shift in (0..28).step_by(7) {
                let (b, tail) = rest.split_first().context("file cut short")?;
                rest = tail;
                len |= usize::from(b & 0x7f) << shift;
                if b & 0x80 == 0 {
                    break;
                }
            }
            let (text, tail) = rest.split_at_checked(len).context("file cut short")?;
            rest = tail;
            Ok(std::str::from_utf8(text)?.to_owned())
        };
        let name = text()?;
        let tag = if flags & 2 == 0 {
            String::new()
        } else {
            text()?
        };
        Ok((flags, name, tag))
    }
}

fn word(file: &[u8], at: usize) -> Result<u64> {
    let b = file.get(at..at + 8).context("file cut short")?;
    Ok(u64::from_le_bytes(b.try_into()?))
}

struct Reader<'a> {
    image: Image<'a>,
    base: u64,
}

// `abi.Kind` numbers.
const BOOL: u8 = 1;
const INT32: u8 = 5;
const INT64: u8 = 6;
const UINT8: u8 = 8;
const FLOAT64: u8 = 14;
const ARRAY: u8 = 17;
const CHAN: u8 = 18;
const FUNC: u8 = 19;
const INTERFACE: u8 = 20;
const MAP: u8 = 21;
const POINTER: u8 = 22;
const SLICE: u8 = 23;
const STRING: u8 = 24;
const STRUCT: u8 = 25;
/// Size of `abi.Type`; what is particular to a kind follows it.
const HEAD: u64 = 48;

impl Reader<'_> {
    fn kind(&self, at: u64) -> Result<u8> {
        Ok(self.image.byte_at(at + 23)? & 31)
    }

    /// Full name with the package's path; anonymous types have only their text.
    fn full_name(&self, at: u64) -> Result<String> {
        let flags = self.image.byte_at(at + 20)?;
        let name = self.base.wrapping_add_signed(self.image.int_at(at + 40)?);
        let (_, mut name, _) = self.image.name(name)?;
        if flags & 2 != 0 {
            name.remove(0);
        }
        if flags & 1 == 0 || flags & 4 == 0 {
            return Ok(name);
        }
        let uncommon = at
            + match self.kind(at)? {
                POINTER | SLICE | FUNC => HEAD + 8,
                ARRAY => HEAD + 24,
                STRUCT => HEAD + 32,
                INTERFACE => HEAD + 32,
                CHAN => HEAD + 16,
                MAP => HEAD + 56,
                _ => HEAD,
            };
        let package = self.base.wrapping_add_signed(self.image.int_at(uncommon)?);
        let (_, package, _) = self.image.name(package)?;
        let short = name.rsplit('.').next().unwrap_or(&name);
        Ok(format!("{package}.{short}"))
    }

    fn describe(&self, at: u64) -> Result<Go> {
        Ok(match self.kind(at)? {
            BOOL => Go::Bool,
            INT32 => Go::Int32,
            INT64 => Go::Int64,
            UINT8 => Go::Byte,
            FLOAT64 => Go::Double,
            STRING => Go::String,
            INTERFACE => Go::Interface,
            STRUCT => Go::Struct(self.full_name(at)?),
            POINTER => Go::Pointer(Box::new(self.describe(self.image.word_at(at + HEAD)?)?)),
            SLICE => Go::Slice(Box::new(self.describe(self.image.word_at(at + HEAD)?)?)),
            MAP => Go::Map(Box::new(self.describe(self.image.word_at(at + HEAD + 8)?)?)),
            _ => Go::Other,
        })
    }

    fn visit(&self, at: u64, todo: &mut Vec<u64>, out: &mut GoStructs) -> Result<()> {
        match self.kind(at)? {
            POINTER | SLICE | ARRAY => todo.push(self.image.word_at(at + HEAD)?),
            MAP => todo.push(self.image.word_at(at + HEAD + 8)?),
            STRUCT => {
                let name = self.full_name(at)?;
                let fields = self.image.word_at(at + HEAD + 8)?;
                let count = self.image.word_at(at + HEAD + 16)?;
                if count > 10_000 {
                    bail!("struct {name} has {count} fields: not the layout that is known");
                }
                let mut list = Vec::new();
                let wanted = name.starts_with("k8s.io/api");
                for i in 0..count {
                    let field = fields + i * 24;
                    let ty = self.image.word_at(field + 8)?;
                    todo.push(ty);
                    if wanted {
                        let (flags, name, tag) = self.image.name(self.image.word_at(field)?)?;
                        list.push(GoField {
                            name,
                            ty: self.describe(ty)?,
                            tag,
                            embedded: flags & 8 != 0,
                        });
                    }
                }
                if wanted {
                    out.insert(name, list);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
