//! Expressions and what they are. Behaviour from the CEL specification (`langdef.md`) and
//! from `k8s.io/apiserver/pkg/cel/library/*_test.go`.

use super::*;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn env() -> Env {
    let object = Type::object(
        "object",
        vec![
            FieldType::plain("name", Type::String(10)),
            FieldType::plain("replicas", Type::Int),
            FieldType::plain("items", Type::list(Type::TEXT)),
            FieldType {
                name: "foo__dash__bar".into(),
                key: "foo-bar".into(),
                ty: Type::Bool,
            },
            FieldType::plain("at", Type::Timestamp),
            FieldType::plain("labels", Type::map(Type::TEXT, Type::TEXT)),
            FieldType::plain("ratio", Type::Double),
        ],
    );
    Env::new().with("self", object).with("any", Type::Dyn)
}

fn given() -> Json {
    json!({
        "name": "web", "replicas": 3, "items": ["a", "b"], "foo-bar": true, "ratio": 2,
        "at": "2024-01-02T03:04:05Z", "labels": {"app": "web"},
    })
}

fn run(source: &str) -> String {
    let (env, json) = (env(), given());
    let program = match Program::compile(&env, source) {
        Ok(p) => p,
        Err(e) => {
            return format!(
                "compile: {}",
                e.to_string().lines().next().unwrap_or_default()
            );
        }
    };
    let ty = env.variable("self").unwrap();
    let activation = Activation::new()
        .with("self", Value::of(&json, ty))
        .with("any", Value::of(&json, &Type::Dyn));
    match program.run(&activation, CALL_COST_MAX).0 {
        Ok(v) => v
            .to_json()
            .map_or_else(|| format!("{v:?}"), |j| j.to_string()),
        Err(e) => format!("error: {e}"),
    }
}

fn check(cases: &[(&str, &str)]) {
    for (source, wanted) in cases {
        assert_eq!(run(source), *wanted, "{source}");
    }
}

#[test]
fn language() {
    check(&[
        ("1 + 2 * 3 - 4 / 2 % 3", "5"),
        ("(1 + 2) * 3", "9"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("1 / 0", "error: division by zero"),
        ("1u - 2u", "error: unsigned integer overflow"),
        ("0x1f", "31"),
        ("1.5e3", "1500.0"),
        ("'a' + \"b\" + '''c\nd''' + r'\\n'", "\"ab\u{63}\\nd\\\\n\""),
        ("'\\u00e9\\x41\\101\\t'", "\"éAA\\t\""),
        ("b'abc'", "\"YWJj\""),
        (
            "1 == 1.0",
            "compile: ERROR: <input>:1:3: found no matching overload for '_==_' applied to '(int, double)'",
        ),
        ("dyn(1) == 1.0", "true"),
        ("1 < 1.5 && 2u > 1", "true"),
        ("true ? 'a' : 'b'", "\"a\""),
        ("!true || !!true", "true"),
        ("true || 1 / 0 == 1", "true"),
        ("1 / 0 == 1 || true", "true"),
        ("1 / 0 == 1 && false", "false"),
        ("1 / 0 == 1 || false", "error: division by zero"),
        ("[1, 2] + [3]", "[1,2,3]"),
        ("{'a': 1, 'b': 2}['b']", "2"),
        ("{1: 'x'}[1]", "\"x\""),
        ("[1, 2][5]", "error: index out of bounds: 5"),
        ("{'a': 1}['z']", "error: no such key: z"),
        ("2 in [1, 2] && 'a' in {'a': 1}", "true"),
        ("null == null", "true"),
        (
            "type(1) == int && type('') == string && type(null) == null_type",
            "true",
        ),
        (
            "size('é') == 1 && 'abc'.size() == 3 && size([1]) == 1",
            "true",
        ),
        (
            "1 + 'a'",
            "compile: ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'",
        ),
        (
            "[1, 'a']",
            "compile: ERROR: <input>:1:5: expected type 'int' but found 'string'",
        ),
        (
            "nope",
            "compile: ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')",
        ),
        (
            "nope(1)",
            "compile: ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')",
        ),
        (
            "for",
            "compile: ERROR: <input>:1:1: reserved identifier: for",
        ),
        (
            "1 +",
            "compile: ERROR: <input>:1:4: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
        ),
        (
            "string(1.0) + string(1e30) + string(true)",
            "\"11e+30true\"",
        ),
        ("int('12') + int(3.9) + int(2u)", "17"),
        ("timestamp('2024-01-02T03:04:05Z').getMonth()", "0"),
        ("timestamp('2024-01-02T03:04:05Z').getHours('+02:00')", "5"),
        (
            "timestamp('2024-01-02T03:04:05Z') + duration('1h') > timestamp('2024-01-02T04:00:00Z')",
            "true",
        ),
        ("duration('90s').getMinutes()", "1"),
        ("string(duration('1.5s'))", "\"1.5s\""),
    ]);
}

#[test]
fn objects() {
    check(&[
        ("self.name == 'web' && self.replicas > 2", "true"),
        ("self.foo__dash__bar", "true"),
        ("self.ratio == 2.0", "true"),
        ("self.at.getFullYear()", "2024"),
        ("self.labels.app", "\"web\""),
        ("self.labels['app']", "\"web\""),
        ("has(self.name) && !has(any.nope)", "true"),
        ("any.nope", "error: no such key: nope"),
        ("any.foo__dash__bar", "true"),
        (
            "self.nope",
            "compile: ERROR: <input>:1:5: undefined field 'nope'",
        ),
        (
            "self.name.x",
            "compile: ERROR: <input>:1:10: type 'string' does not support field selection",
        ),
        ("any.replicas + 1", "4"),
        ("any.name + 1", "error: no such overload"),
        ("self.?labels.?nope.orValue('none')", "\"none\""),
        ("self.labels[?'app'].hasValue()", "true"),
        ("any.?a.?b.?c.hasValue()", "false"),
        ("optional.of(1).optMap(x, x + 1).value()", "2"),
        ("optional.none().orValue(7)", "7"),
        ("[?optional.of(1), ?optional.none(), 3]", "[1,3]"),
        ("{?'a': optional.of(1), ?'b': optional.none()}", "{\"a\":1}"),
    ]);
}

#[test]
fn macros() {
    check(&[
        ("[1, 2, 3].all(x, x > 0)", "true"),
        ("[1, 2, 3].exists(x, x > 2)", "true"),
        ("[1, 2, 3].exists_one(x, x > 1)", "false"),
        ("[1, 2, 3].filter(x, x > 1)", "[2,3]"),
        ("[1, 2, 3].map(x, x * 2)", "[2,4,6]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4,6]"),
        ("{'a': 1, 'b': 2}.all(k, k != 'c')", "true"),
        ("[1, 2].all(i, v, v == i + 1)", "true"),
        ("{'a': 1}.exists(k, v, k == 'a' && v == 1)", "true"),
        ("[3, 4].transformList(i, v, i * v)", "[0,4]"),
        (
            "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 10)",
            "{\"b\":20}",
        ),
        (
            "['a', 'b'].transformMapEntry(i, v, {v: i})",
            "{\"a\":0,\"b\":1}",
        ),
        ("[3, 1, 2].sortBy(x, -x)", "[3,2,1]"),
        ("cel.bind(x, 2, x * x)", "4"),
        ("[1, 0].exists(x, 1 / x == 1)", "true"),
        ("[0, 1].exists(x, 1 / x == 1)", "true"),
        ("[0, 1].all(x, 1 / x == 1)", "error: division by zero"),
        ("[1].map(x, [2].map(y, x + y))", "[[3]]"),
        (
            "[1].all(x, x)",
            "compile: ERROR: <input>:1:12: expected type 'bool' but found 'int'",
        ),
        (
            "1.all(x, true)",
            "compile: ERROR: <input>:1:6: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "has(self)",
            "compile: ERROR: <input>:1:5: invalid argument to has() macro",
        ),
    ]);
}

#[test]
fn libraries() {
    check(&[
        (
            "'Hello'.charAt(1) + 'hello'.upperAscii() + ' x '.trim()",
            "\"eHELLOx\"",
        ),
        (
            "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'abc'.split('') == ['a', 'b', 'c']",
            "true",
        ),
        ("'a,b,c'.split(',', 2)", "[\"a\",\"b,c\"]"),
        ("'hello'.replace('l', 'L', 1)", "\"heLlo\""),
        ("'hello'.substring(1, 3)", "\"el\""),
        (
            "'hello'.substring(3, 1)",
            "error: invalid substring range. start: 3, end: 1",
        ),
        ("'hello'.indexOf('l') + 'hello'.lastIndexOf('l')", "5"),
        ("['a', 'b'].join('-')", "\"a-b\""),
        (
            "'%s is %d, %.2f %x'.format(['a', 3, 1.5, 255])",
            "\"a is 3, 1.50 ff\"",
        ),
        (
            "'%s'.format([[1, 'a', {'k': true}]])",
            "\"[1, a, {k: true}]\"",
        ),
        (
            "'abc'.matches('^a.c$') && 'abc'.find('b') == 'b' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
            "true",
        ),
        (
            "'a'.matches('(')",
            "compile: ERROR: <input>:1:12: invalid matches argument: unclosed group",
        ),
        (
            "[1, 2, 3].sum() == 6 && [1, 2].max() == 2 && [1, 3, 2].isSorted() == false",
            "true",
        ),
        ("[1, 2].indexOf(2)", "1"),
        (
            "[[1], [2, 3]].flatten() == [1, 2, 3] && [1, 2, 1].distinct() == [1, 2]",
            "true",
        ),
        (
            "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 2])",
            "true",
        ),
        (
            "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('1').add(quantity('500m')).sign() == 1",
            "true",
        ),
        ("quantity('50k').asInteger()", "50000"),
        ("isQuantity('1x')", "false"),
        (
            "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.2', true) && !isSemver('v1.2')",
            "true",
        ),
        (
            "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('::ffff:1.2.3.4') && ip('127.0.0.1').isLoopback()",
            "true",
        ),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
            "true",
        ),
        (
            "string(cidr('10.1.2.3/8').masked()) + ' ' + string(cidr('10.1.2.3/8').ip())",
            "\"10.0.0.0/8 10.1.2.3\"",
        ),
        (
            "cidr('::/0').prefixLength() == 0 && cidr('0.0.0.0/0').containsIP(ip('8.8.8.8'))",
            "true",
        ),
        (
            "url('https://u@example.com:8080/a/b?x=1&x=2').getHost()",
            "\"example.com:8080\"",
        ),
        (
            "url('https://example.com:8080/a?x=1&x=2').getQuery()['x']",
            "[\"1\",\"2\"]",
        ),
        (
            "isURL('/a/b') && !isURL('a b') && url('https://[::1]:80/').getHostname() == '::1'",
            "true",
        ),
        (
            "!format.dns1123Label().validate('my-name').hasValue()",
            "true",
        ),
        (
            "format.named('dns1123Label').value().validate('My').hasValue()",
            "true",
        ),
        (
            "math.greatest(1, 3, 2) == 3 && math.least([1.5, 0.5]) == 0.5 && math.abs(-2) == 2",
            "true",
        ),
        (
            "jsonpatch.escapeKey('k8s.io/my~label')",
            "\"k8s.io~1my~0label\"",
        ),
        (
            "base64.encode(b'hi') == 'aGk=' && base64.decode('aGk=') == b'hi'",
            "true",
        ),
        ("lists.range(3)", "[0,1,2]"),
        ("lists.range(100000000)", "error: list is too large"),
        (
            "'a'.startsWith(1)",
            "compile: ERROR: <input>:1:15: found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
    ]);
}

/// `k8s.io/apiserver/pkg/cel/mutation`.
#[test]
fn objects_are_made() {
    let env = Env::new().with("object", Type::Dyn).with_objects();
    let object = json!({"name": "a"});
    let make = |source: &str| {
        let program = Program::compile(&env, source).unwrap();
        let activation = Activation::new().with("object", Value::of(&object, &Type::Dyn));
        program
            .run(&activation, CALL_COST_MAX)
            .0
            .unwrap()
            .to_json()
            .unwrap()
    };
    assert_eq!(
        make(
            "Object{spec: Object.spec{containers: [Object.spec.containers{name: object.name, __namespace__: 1, ?x: optional.none()}]}}"
        ),
        json!({"spec": {"containers": [{"name": "a", "namespace": 1}]}})
    );
    assert_eq!(
        make("[JSONPatch{op: 'add', path: '/a', value: 1}, JSONPatch{op: 'remove', path: '/b'}]"),
        json!([{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}])
    );
    assert!(Program::compile(&env, "Other{a: 1}").is_err());
    assert!(Program::compile(&Env::new(), "Object{a: 1}").is_err());
}

/// Sets and keyed lists are joined and compared as such: docs of "Validation rules".
#[test]
fn lists_of_kinds() {
    use crate::schema::ListKind;
    let kind = |kind| {
        Type::List(std::sync::Arc::new(ListType {
            item: Type::Dyn,
            max: UNBOUNDED,
            kind,
        }))
    };
    let (set, map) = (
        kind(ListKind::Set),
        kind(ListKind::Map(Box::new(["k".into()]))),
    );
    let env = Env::new().with("s", set.clone()).with("m", map.clone());
    let (a, b) = (json!([1, 2]), json!([{"k": 1, "v": 1}]));
    for source in [
        "s == [2, 1]",
        "s + [2, 3] == [1, 2, 3]",
        "m + [{'k': 1, 'v': 2}] == [{'k': 1, 'v': 2}]",
        "(m + [{'k': 2, 'v': 2}]).size() == 2",
    ] {
        let program = Program::compile(&env, source).unwrap();
        let activation = Activation::new()
            .with("s", Value::of(&a, &set))
            .with("m", Value::of(&b, &map));
        let value = program.run(&activation, CALL_COST_MAX).0;
        assert!(
            matches!(value, Ok(Value::Bool(true))),
            "{source}: {value:?}"
        );
    }
}

#[test]
fn variables_are_run_when_they_are_read() {
    let env = Env::new().with("x", Type::Int);
    let first = Program::compile(&env, "x * 2").unwrap();
    let inner = Type::object("variables", vec![FieldType::plain("first", Type::Int)]);
    let env = env.with("variables", inner);
    let second = Program::compile(&env, "variables.first + 1 / (x - 1)").unwrap();
    let programs = [("first".into(), first), ("second".into(), second)];
    let both = Type::object(
        "variables",
        vec![
            FieldType::plain("first", Type::Int),
            FieldType::plain("second", Type::Int),
        ],
    );
    let env = env.with("variables", both);
    let run = |source: &str, x: i64| {
        let program = Program::compile(&env, source).unwrap();
        let activation = Activation::new()
            .with("x", Value::Int(x))
            .with_variables(&programs);
        program
            .run(&activation, CALL_COST_MAX)
            .0
            .map(|v| v.to_json())
    };
    assert_eq!(run("variables.second", 3), Ok(Some(json!(6))));
    assert_eq!(
        run("true || variables.second == 1", 1),
        Ok(Some(json!(true)))
    );
    let error = run("variables.second", 1).unwrap_err().to_string();
    assert_eq!(
        error,
        "composited variable \"second\" fails to evaluate: division by zero"
    );
}

#[test]
fn authorizer_is_asked() {
    struct Only;
    impl Authorize for Only {
        fn allowed(&self, q: &Question) -> bool {
            q.group == "apps"
                && q.resource == "deployments"
                && q.verb == "create"
                && q.namespace == "prod"
        }
    }
    let env = Env::new().with("authorizer", Type::Opaque(Opaque::Authorizer));
    let ask = |ns: &str| {
        let source = format!(
            "authorizer.group('apps').resource('deployments').namespace('{ns}').check('create').allowed()"
        );
        let program = Program::compile(&env, &source).unwrap();
        let activation = Activation::new().with("authorizer", Check::authorizer(&Only));
        let (value, spent) = program.run(&activation, CALL_COST_MAX);
        assert!(spent > 350_000);
        value.unwrap().to_json()
    };
    assert_eq!(ask("prod"), Some(json!(true)));
    assert_eq!(ask("test"), Some(json!(false)));
}

/// `cel-go/checker/cost_test.go`, `cel-go/interpreter/runtimecost_test.go`.
#[test]
fn costs() {
    let env = Env::new()
        .with("l", Type::list(Type::Int))
        .with("s", Type::String(100))
        .with("b", Type::Bool);
    for (source, most) in [
        ("true", 0),
        ("b", 1),
        ("1 + 2", 1),
        ("b && b", 2),
        ("s == 'abc'", 2),
        ("s.matches('[a-z]+')", 1 + 11 * 2),
        ("s.startsWith('0123456789ab')", 1 + 2),
        ("[1, 2, 3].all(x, x > 0)", 10 + 1 + 3 * (3 + 2)),
        ("[1, 2]", 10),
        ("l.all(x, true)", UNBOUNDED),
    ] {
        assert_eq!(
            Program::compile(&env, source).unwrap().cost_max(),
            most,
            "{source}"
        );
    }
    let long: Vec<Json> = (0..2000).map(Json::from).collect();
    let long = Json::from(long);
    let source = "l.all(x, l.all(y, l.all(z, x + y + z >= 0)))";
    let program = Program::compile(&env, source).unwrap();
    let list = Type::list(Type::Int);
    let activation = Activation::new().with("l", Value::of(&long, &list));
    let (value, spent) = program.run(&activation, CALL_COST_MAX);
    assert_eq!(
        value.unwrap_err().to_string(),
        "operation cancelled: actual cost limit exceeded"
    );
    assert!((CALL_COST_MAX..CALL_COST_MAX + 10_000).contains(&spent));
}

#[test]
fn hostile_sources_are_refused() {
    let env = env();
    let many = |s: &str, n: usize| s.repeat(n);
    for source in [
        many("(", 10_000),
        many("[", 10_000),
        many("!", 10_000),
        many("-", 10_000) + "x",
        format!("1{}", many("+1", 10_000)),
        format!("self{}", many(".a", 10_000)),
        format!("{}1{}", many("[", 5_000), many("]", 5_000)),
        format!("{}true", many("true ? true : ", 10_000)),
        many("'", 10_001),
        many("a.b(", 5_000),
        "x".repeat(SOURCE_BYTES_MAX + 1),
        "\u{0}".to_owned(),
        "'\\u{110000}'".to_owned(),
    ] {
        assert!(Program::compile(&env, &source).is_err());
    }
    // Many terms of one operator are no depth.
    let wide = format!("true{}", many(" || false", 5_000));
    assert!(Program::compile(&env, &wide).is_ok());
    // Deep, but not too deep, on a small stack.
    let deep = format!("{}1{}", many("(", 60), many(")", 60));
    let nested = (0..60).fold("true".to_owned(), |s, _| format!("[1].all(x, {s})"));
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let done = thread
        .spawn(move || (run(&deep), run(&nested)))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(done, ("1".to_owned(), "true".to_owned()));
}

#[test]
fn results_are_bounded() {
    let big = "'0123456789'".to_owned() + &".replace('', '0123456789')".repeat(12);
    assert!(run(&big).starts_with("error: "), "{}", run(&big));
}

proptest! {
    /// Whatever is written, an answer comes.
    #[test]
    fn no_source_panics(source in "[a-z0-9.()\\[\\]{}'\"+*/%!?:,<>=&| -]{0,60}") {
        let _ = run(&source);
    }

    #[test]
    fn words_of_the_language_do_not_panic(parts in prop::collection::vec(prop::sample::select(vec![
        "self", "any", ".name", ".items", ".all(", "x", ",", ")", "(", "1", "'a'", "+", "==", "&&",
        "[", "]", "{", "}", ":", "?", "-", "in", "size(", "has(", ".map(", ".?", "[?", "null",
        "1.5", "2u", "ip(", "quantity(", ".format(", "duration('1h')", "%", "/", "0", ".sortBy(",
    ]), 0..24)) {
        let _ = run(&parts.concat());
    }

    /// Whole numbers as the language computes them are those of this one.
    #[test]
    fn arithmetic_agrees(a in any::<i64>(), b in any::<i64>()) {
        let wanted = |n: Option<i64>| n.map_or("error: integer overflow".to_owned(), |n| n.to_string());
        prop_assert_eq!(run(&format!("{a} + {b}")), wanted(a.checked_add(b)));
        prop_assert_eq!(run(&format!("{a} - ({b})")), wanted(a.checked_sub(b)));
        prop_assert_eq!(run(&format!("{a} * {b}")), wanted(a.checked_mul(b)));
        prop_assert_eq!(run(&format!("{a} < {b}")), (a < b).to_string());
    }
}
