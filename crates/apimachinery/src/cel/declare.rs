//! What functions there are: names, types and who does them.
//!
//! The standard functions are those of the CEL specification; the libraries are those of
//! `k8s.io/apiserver/pkg/cel/library` and of `cel-go/ext` as upstream's base environment
//! has them. Types are written as `receiver.(arguments)->result`.

use super::eval::EvalError;
use super::ty::{Opaque, Type};
use super::value::Value;
use super::{authorize, lists, net, standard, texts};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Does a function; the receiver is the first argument.
pub(super) type Library =
    for<'a> fn(name: &'static str, args: &[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// A function with all its overloads.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) library: Library,
    pub(super) overloads: Vec<Overload>,
}

#[derive(Debug)]
pub(super) struct Overload {
    pub(super) receiver: bool,
    /// The receiver first.
    pub(super) args: Vec<Type>,
    pub(super) result: Type,
}

/// The function of a name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

/// One line: names, separated by spaces, and their types, separated by `;`.
type Line = (&'static str, &'static str);

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let libraries: [(Library, &[Line]); 5] = [
        (standard::call, STANDARD),
        (texts::call, TEXTS),
        (lists::call, LISTS),
        (net::call, NET),
        (authorize::call, AUTHORIZE),
    ];
    let mut all: HashMap<&'static str, Function> = HashMap::new();
    for (library, lines) in libraries {
        for (names, types) in lines {
            for name in names.split(' ') {
                let function = all.entry(name).or_insert_with(|| Function {
                    name,
                    library,
                    overloads: Vec::new(),
                });
                function.overloads.extend(types.split(';').map(overload));
            }
        }
    }
    all
});

fn overload(text: &str) -> Overload {
    let (left, result) = text.split_once(")->").unwrap_or((text, "dyn"));
    let (receiver, args) = left.split_once('(').unwrap_or(("", left));
    let receiver = receiver.trim().trim_end_matches('.');
    let mut types = Vec::new();
    if !receiver.is_empty() {
        types.push(one_type(receiver));
    }
    let (mut depth, mut from) = (0, 0);
    for (i, c) in args.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                types.push(one_type(&args[from..i]));
                from = i + 1;
            }
            _ => {}
        }
    }
    if !args[from..].trim().is_empty() {
        types.push(one_type(&args[from..]));
    }
    Overload {
        receiver: !receiver.is_empty(),
        args: types,
        result: one_type(result),
    }
}

fn one_type(text: &str) -> Type {
    let text = text.trim();
    if let Some((head, rest)) = text.split_once('<') {
        let inner = rest.strip_suffix('>').unwrap_or(rest);
        return match head {
            "list" => Type::list(one_type(inner)),
            "opt" => Type::optional(one_type(inner)),
            _ => {
                let (key, value) = inner.split_once(',').unwrap_or((inner, "dyn"));
                Type::map(one_type(key), one_type(value))
            }
        };
    }
    match text {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::TEXT,
        "bytes" => Type::Bytes(super::ty::UNBOUNDED),
        "time" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "URL" => Type::Opaque(Opaque::Url),
        "IP" => Type::Opaque(Opaque::Ip),
        "CIDR" => Type::Opaque(Opaque::Cidr),
        "Quantity" => Type::Opaque(Opaque::Quantity),
        "Semver" => Type::Opaque(Opaque::Semver),
        "Format" => Type::Opaque(Opaque::Format),
        "Authorizer" => Type::Opaque(Opaque::Authorizer),
        "PathCheck" => Type::Opaque(Opaque::PathCheck),
        "GroupCheck" => Type::Opaque(Opaque::GroupCheck),
        "ResourceCheck" => Type::Opaque(Opaque::ResourceCheck),
        "Decision" => Type::Opaque(Opaque::Decision),
        _ => Type::Dyn,
    }
}

const STANDARD: &[Line] = &[
    ("!_", "(bool)->bool"),
    ("-_", "(int)->int;(double)->double"),
    ("_&&_ _||_", "(bool,bool)->bool"),
    ("_?_:_", "(bool,A,A)->A"),
    ("_==_ _!=_", "(A,A)->bool"),
    (
        "_<_ _<=_ _>_ _>=_",
        "(bool,bool)->bool;(int,int)->bool;(int,uint)->bool;(int,double)->bool;(uint,uint)->bool;(uint,int)->bool;(uint,double)->bool;(double,double)->bool;(double,int)->bool;(double,uint)->bool;(string,string)->bool;(bytes,bytes)->bool;(time,time)->bool;(duration,duration)->bool",
    ),
    (
        "_+_",
        "(int,int)->int;(uint,uint)->uint;(double,double)->double;(string,string)->string;(bytes,bytes)->bytes;(list<A>,list<A>)->list<A>;(time,duration)->time;(duration,time)->time;(duration,duration)->duration",
    ),
    (
        "_-_",
        "(int,int)->int;(uint,uint)->uint;(double,double)->double;(time,time)->duration;(time,duration)->time;(duration,duration)->duration",
    ),
    (
        "_*_ _/_",
        "(int,int)->int;(uint,uint)->uint;(double,double)->double",
    ),
    ("_%_", "(int,int)->int;(uint,uint)->uint"),
    ("@in", "(A,list<A>)->bool;(A,map<A,B>)->bool"),
    ("_[_]", "(list<A>,int)->A;(map<A,B>,A)->B"),
    (
        "size",
        "(string)->int;(bytes)->int;(list<A>)->int;(map<A,B>)->int;string.()->int;bytes.()->int;list<A>.()->int;map<A,B>.()->int",
    ),
    ("type", "(A)->type"),
    ("dyn", "(A)->dyn"),
    ("bool", "(bool)->bool;(string)->bool"),
    ("bytes", "(bytes)->bytes;(string)->bytes"),
    (
        "double",
        "(double)->double;(int)->double;(uint)->double;(string)->double",
    ),
    (
        "uint",
        "(uint)->uint;(int)->uint;(double)->uint;(string)->uint",
    ),
    (
        "int",
        "(int)->int;(uint)->int;(double)->int;(string)->int;(time)->int;(duration)->int",
    ),
    (
        "string",
        "(string)->string;(bool)->string;(int)->string;(uint)->string;(double)->string;(bytes)->string;(time)->string;(duration)->string;(IP)->string;(CIDR)->string;IP.()->string;CIDR.()->string",
    ),
    ("timestamp", "(time)->time;(string)->time;(int)->time"),
    (
        "duration",
        "(duration)->duration;(string)->duration;(int)->duration",
    ),
    (
        "getFullYear getMonth getDayOfYear getDayOfMonth getDate getDayOfWeek",
        "time.()->int;time.(string)->int",
    ),
    (
        "getHours getMinutes getSeconds getMilliseconds",
        "time.()->int;time.(string)->int;duration.()->int",
    ),
    ("optional.of optional.ofNonZeroValue", "(A)->opt<A>"),
    ("optional.none", "()->opt<A>"),
    ("hasValue", "opt<A>.()->bool"),
    ("value", "opt<A>.()->A"),
    ("or", "opt<A>.(opt<A>)->opt<A>"),
    ("orValue", "opt<A>.(A)->A"),
    ("optional.unwrap", "(list<opt<A>>)->list<A>"),
    ("unwrapOpt", "list<opt<A>>.()->list<A>"),
    ("quantity", "(string)->Quantity"),
    ("isQuantity", "(string)->bool"),
    ("sign asInteger", "Quantity.()->int"),
    ("isInteger", "Quantity.()->bool"),
    ("asApproximateFloat", "Quantity.()->double"),
    (
        "add sub",
        "Quantity.(Quantity)->Quantity;Quantity.(int)->Quantity",
    ),
    (
        "isGreaterThan isLessThan",
        "Quantity.(Quantity)->bool;Semver.(Semver)->bool",
    ),
    ("compareTo", "Quantity.(Quantity)->int;Semver.(Semver)->int"),
    ("semver", "(string)->Semver;(string,bool)->Semver"),
    ("isSemver", "(string)->bool;(string,bool)->bool"),
    ("major minor patch", "Semver.()->int"),
    (
        "math.greatest math.least",
        "(list<A>)->A;(int)->int;(uint)->uint;(double)->double;(A,A)->A;(A,A,A)->A;(A,A,A,A)->A",
    ),
    (
        "math.ceil math.floor math.round math.trunc",
        "(double)->double",
    ),
    (
        "math.abs math.sign",
        "(int)->int;(uint)->uint;(double)->double",
    ),
    ("math.isInf math.isNaN math.isFinite", "(double)->bool"),
    ("math.sqrt", "(int)->double;(uint)->double;(double)->double"),
    (
        "math.bitAnd math.bitOr math.bitXor",
        "(int,int)->int;(uint,uint)->uint",
    ),
    ("math.bitNot", "(int)->int;(uint)->uint"),
    (
        "math.bitShiftLeft math.bitShiftRight",
        "(int,int)->int;(uint,int)->uint",
    ),
];

const TEXTS: &[Line] = &[
    (
        "contains startsWith endsWith matches",
        "string.(string)->bool",
    ),
    ("matches", "(string,string)->bool"),
    ("charAt", "string.(int)->string"),
    ("lowerAscii upperAscii trim reverse", "string.()->string"),
    (
        "replace",
        "string.(string,string)->string;string.(string,string,int)->string",
    ),
    (
        "split",
        "string.(string)->list<string>;string.(string,int)->list<string>",
    ),
    ("substring", "string.(int)->string;string.(int,int)->string"),
    ("format", "string.(list<dyn>)->string"),
    ("strings.quote", "(string)->string"),
    ("find", "string.(string)->string"),
    (
        "findAll",
        "string.(string)->list<string>;string.(string,int)->list<string>",
    ),
    (
        "join",
        "list<string>.()->string;list<string>.(string)->string",
    ),
    ("jsonpatch.escapeKey", "(string)->string"),
    ("base64.encode", "(bytes)->string"),
    ("base64.decode", "(string)->bytes"),
    ("format.named", "(string)->opt<Format>"),
    (
        "format.dns1123Label format.dns1123Subdomain format.dns1035Label format.qualifiedName format.dns1123LabelPrefix format.dns1123SubdomainPrefix format.dns1035LabelPrefix format.labelValue format.uri format.uuid format.byte format.date format.datetime",
        "()->Format",
    ),
    ("validate", "Format.(string)->opt<list<string>>"),
];

const LISTS: &[Line] = &[
    ("isSorted", "list<A>.()->bool"),
    (
        "sum",
        "list<int>.()->int;list<uint>.()->uint;list<double>.()->double;list<duration>.()->duration",
    ),
    ("min max", "list<A>.()->A"),
    (
        "indexOf lastIndexOf",
        "list<A>.(A)->int;string.(string)->int;string.(string,int)->int",
    ),
    (
        "sets.contains sets.equivalent sets.intersects",
        "(list<A>,list<A>)->bool",
    ),
    ("slice", "list<A>.(int,int)->list<A>"),
    (
        "flatten",
        "list<list<A>>.()->list<A>;list<dyn>.(int)->list<dyn>",
    ),
    ("distinct sort", "list<A>.()->list<A>"),
    ("reverse", "list<A>.()->list<A>"),
    ("first last", "list<A>.()->opt<A>"),
    ("lists.range", "(int)->list<int>"),
];

const NET: &[Line] = &[
    ("ip", "(string)->IP;CIDR.()->IP"),
    ("isIP", "(string)->bool"),
    ("ip.isCanonical", "(string)->bool"),
    ("family", "IP.()->int"),
    (
        "isUnspecified isLoopback isLinkLocalMulticast isLinkLocalUnicast isGlobalUnicast",
        "IP.()->bool",
    ),
    ("cidr", "(string)->CIDR"),
    ("isCIDR", "(string)->bool"),
    ("containsIP", "CIDR.(string)->bool;CIDR.(IP)->bool"),
    ("containsCIDR", "CIDR.(string)->bool;CIDR.(CIDR)->bool"),
    ("masked", "CIDR.()->CIDR"),
    ("prefixLength", "CIDR.()->int"),
    ("url", "(string)->URL"),
    ("isURL", "(string)->bool"),
    (
        "getScheme getHost getHostname getPort getEscapedPath",
        "URL.()->string",
    ),
    ("getQuery", "URL.()->map<string,list<string>>"),
];

const AUTHORIZE: &[Line] = &[
    ("path", "Authorizer.(string)->PathCheck"),
    ("group", "Authorizer.(string)->GroupCheck"),
    ("serviceAccount", "Authorizer.(string,string)->Authorizer"),
    ("resource", "GroupCheck.(string)->ResourceCheck"),
    (
        "subresource namespace name fieldSelector labelSelector",
        "ResourceCheck.(string)->ResourceCheck",
    ),
    (
        "check",
        "PathCheck.(string)->Decision;ResourceCheck.(string)->Decision",
    ),
    ("allowed errored", "Decision.()->bool"),
    ("reason error", "Decision.()->string"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declaration_is_read() {
        let size = find("size").unwrap();
        assert_eq!(size.overloads.len(), 8);
        assert!(size.overloads[7].receiver);
        assert_eq!(size.overloads[7].args[0].to_string(), "map(A, B)");
        let named = find("format.named").unwrap();
        assert_eq!(
            named.overloads[0].result.to_string(),
            "optional_type(kubernetes.NamedFormat)"
        );
        let query = find("getQuery").unwrap();
        assert_eq!(
            query.overloads[0].result.to_string(),
            "map(string, list(string))"
        );
    }
}
