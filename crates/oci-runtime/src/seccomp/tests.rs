//! Seccomp programs, asked as the kernel asks them, against a naive reading of the profile.

use super::*;
use proptest::prelude::*;
use serde_json::json;

/// What the kernel would answer: the instructions as its documentation has them.
fn ask(program: &Program, processor: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |at: u32| match at {
        NUMBER_AT => number,
        PROCESSOR_AT => processor,
        _ => {
            let argument = arguments[((at - ARGUMENTS_AT) / 8) as usize];
            (argument >> (8 * (at % 8))) as u32
        }
    };
    let (mut at, mut a) = (0, 0);
    loop {
        let Filter { code, yes, no, k } = program.filter[at];
        at += 1;
        let holds = match code {
            LOAD => {
                a = word(k);
                continue;
            }
            AND => {
                a &= k;
                continue;
            }
            JUMP => {
                at += k as usize;
                continue;
            }
            RETURN => return k,
            JUMP_EQUAL => a == k,
            JUMP_GREATER => a > k,
            JUMP_GREATER_EQUAL => a >= k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { yes } else { no });
    }
}

fn program(profile: serde_json::Value) -> Program {
    Program::of(&serde_json::from_value(profile).unwrap()).unwrap()
}

const ALLOW: u32 = 0x7fff_0000;

#[test]
fn other_processors_and_x32_are_no_way_around() {
    let program = program(json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount", "no_such_call"], "action": "SCMP_ACT_ERRNO"}]}));
    let own = &PROCESSORS[0];
    let mount = (own.number)("mount").unwrap();
    assert_eq!(ask(&program, own.kernel, mount, [0; 6]), ERRNO | EPERM);
    assert_eq!(ask(&program, own.kernel, mount + 1, [0; 6]), ALLOW);
    assert_eq!(ask(&program, own.kernel, mount - 1, [0; 6]), ALLOW);
    if own.profile == "SCMP_ARCH_X86_64" {
        assert_eq!(
            ask(&program, own.kernel, mount | X32, [0; 6]),
            ERRNO | ENOSYS
        );
    }
    // Not named, so not to be had.
    let other = &PROCESSORS[1];
    assert_eq!(ask(&program, other.kernel, 1, [0; 6]), KILL_PROCESS);
    assert_eq!(ask(&program, 0x1234, 1, [0; 6]), KILL_PROCESS);
}

#[test]
fn what_can_t_be_meant_is_refused() {
    let of = |profile| {
        let profile: Profile = serde_json::from_value(profile).unwrap();
        Program::of(&profile).err().map(|e| e.to_string())
    };
    let with = |argument| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [argument]}]})
    };
    let index = json!({"index": 6, "value": 1, "op": "SCMP_CMP_EQ"});
    let said = "the seccomp profile looks at argument 6: there are six, from 0 on";
    assert_eq!(of(with(index)).as_deref(), Some(said));
    let flags = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["FAST"]});
    let said = "the seccomp profile has a flag that is not known: \"FAST\"";
    assert_eq!(of(flags).as_deref(), Some(said));
    // A listener is needed for it, and there is none.
    let notify = json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    assert!(serde_json::from_value::<Profile>(notify).is_err());
}

fn operator() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ])
}

/// Few different ones, around where halves meet.
fn value() -> impl Strategy<Value = u64> {
    let few = vec![
        0,
        1,
        2,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop::sample::select(few)
}

fn holds(argument: &Argument, actual: u64) -> bool {
    match argument.op {
        Operator::NotEqual => actual != argument.value,
        Operator::Less => actual < argument.value,
        Operator::LessEqual => actual <= argument.value,
        Operator::Equal => actual == argument.value,
        Operator::GreaterEqual => actual >= argument.value,
        Operator::Greater => actual > argument.value,
        Operator::MaskedEqual => actual & argument.value == argument.value_two,
    }
}

proptest! {
    /// The program answers as one who reads the rules one by one.
    #[test]
    fn the_program_says_what_the_profile_does(
        rules in prop::collection::vec((
            prop::collection::vec(prop::sample::select(vec!["read", "write", "open", "clone", "socket"]), 1..3),
            1u32..200,
            prop::collection::btree_map(0u32..6, (operator(), value(), value()), 0..6),
        ), 0..8),
        asked in prop::sample::select(vec!["read", "write", "openat", "clone", "socket"]),
        arguments in prop::array::uniform6(value()),
    ) {
        let rules: Vec<_> = rules.iter().map(|(names, errno, args)| {
            let args: Vec<_> = args.iter().map(|(index, (op, value, second))| {
                json!({"index": index, "op": op, "value": value, "valueTwo": second})
            }).collect();
            json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args})
        }).collect();
        let profile = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules});
        let profile: Profile = serde_json::from_value(profile).unwrap();
        let about = profile.syscalls.iter().filter(|rule| rule.names.iter().any(|n| n == asked));
        let plain = |rule: &&Rule| rule.args.as_ref().is_none_or(Vec::is_empty);
        let holds = |rule: &&Rule| {
            rule.args.iter().flatten().all(|a| holds(a, arguments[a.index as usize]))
        };
        let found = about.clone().find(plain).or_else(|| about.clone().find(holds));
        let expected = found.map_or(0x7ffc_0000, |rule| ERRNO | rule.errno_ret.unwrap());
        let own = &PROCESSORS[0];
        let number = (own.number)(asked).unwrap();
        let program = Program::of(&profile).unwrap();
        prop_assert_eq!(ask(&program, own.kernel, number, arguments), expected);
    }
}
