//! Which system calls a container may use: a seccomp profile of the OCI runtime specification, made
//! into the program that the kernel asks.
//!
//! For each processor's calls the program finds the call by halving their range, then looks at its
//! arguments where rules name some. A rule without arguments counts before those with some; among
//! these the first that holds does. Names that a processor does not have are passed over. Calls of
//! the x32 interface do not exist for containers, whatever a profile says.

use crate::kernel::{self, Filter};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// What the kernel takes at most.
const INSTRUCTIONS_MAX: usize = 4096;
/// Calls of x32 have this bit.
const X32: u32 = 0x4000_0000;

// Instructions: load a word, mask it, jump, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
// Where the kernel shows what: `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const PROCESSOR_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`.
const ERRNO: u32 = 0x0005_0000;

/// `linux.seccomp`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("the seccomp profile looks at argument {0}: there are six, from 0 on")]
    Index(u32),
    #[error("the seccomp profile has a flag that is not known: {0:?}")]
    Flag(String),
    #[error("the seccomp profile takes {0} instructions: the kernel takes {INSTRUCTIONS_MAX}")]
    TooLong(usize),
    #[error("load the seccomp profile")]
    Load(#[from] io::Error),
}

/// A processor's calls: how the kernel and profiles name it, and its numbers.
struct Processor {
    kernel: u32,
    profile: &'static str,
    number: fn(&str) -> Option<u32>,
}

fn id<T: std::str::FromStr>(name: &str, id: fn(&T) -> i32) -> Option<u32> {
    let call = name.parse::<T>().ok()?;
    u32::try_from(id(&call)).ok()
}

/// The machine's own comes first.
const PROCESSORS: &[Processor] = &[
    #[cfg(target_arch = "x86_64")]
    Processor {
        kernel: 0xc000_003e,
        profile: "SCMP_ARCH_X86_64",
        number: |name| id(name, syscalls::x86_64::Sysno::id),
    },
    #[cfg(target_arch = "x86_64")]
    Processor {
        kernel: 0x4000_0003,
        profile: "SCMP_ARCH_X86",
        number: |name| id(name, syscalls::x86::Sysno::id),
    },
    #[cfg(target_arch = "aarch64")]
    Processor {
        kernel: 0xc000_00b7,
        profile: "SCMP_ARCH_AARCH64",
        number: |name| id(name, syscalls::aarch64::Sysno::id),
    },
    #[cfg(target_arch = "aarch64")]
    Processor {
        kernel: 0x4000_0028,
        profile: "SCMP_ARCH_ARM",
        number: |name| id(name, syscalls::arm::Sysno::id),
    },
];

/// A profile as the kernel takes it.
pub(crate) struct Program {
    filter: Vec<Filter>,
    flags: u32,
}

impl Program {
    /// Reads and writes nothing.
    pub(crate) fn of(profile: &Profile) -> Result<Self, ProfileError> {
        let mut flags = 0;
        for flag in &profile.flags {
            flags |= match flag.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => 1,
                "SECCOMP_FILTER_FLAG_LOG" => 2,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
                other => return Err(ProfileError::Flag(other.to_owned())),
            };
        }
        let mut filter = vec![load(PROCESSOR_AT)];
        for (at, processor) in PROCESSORS.iter().enumerate() {
            let named = || profile.architectures.iter().any(|a| a == processor.profile);
            if at > 0 && !named() {
                continue;
            }
            let mut block = vec![load(NUMBER_AT)];
            if processor.profile == "SCMP_ARCH_X86_64" {
                block.push(jump(JUMP_GREATER_EQUAL, X32, 0, 1));
                block.push(give_back(ERRNO | ENOSYS));
            }
            halve(&mut block, &ranges(profile, processor)?);
            filter.push(jump(JUMP_EQUAL, processor.kernel, 1, 0));
            filter.push(far(block.len()));
            filter.append(&mut block);
        }
        filter.push(give_back(KILL_PROCESS));
        if filter.len() > INSTRUCTIONS_MAX {
            return Err(ProfileError::TooLong(filter.len()));
        }
        Ok(Self { filter, flags })
    }

    /// This process is confined by it from now on.
    pub(crate) fn load(&self) -> Result<(), ProfileError> {
        Ok(kernel::set_filter(&self.filter, self.flags)?)
    }
}

/// What is done with a call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Plain(u32),
    /// The first whose conditions all hold, else the last.
    ByArguments(Vec<(Vec<Condition>, u32)>, u32),
}

type Condition = (u32, Operator, u64, u64);

/// Numbers from which on calls have an answer, rising from 0.
fn ranges(profile: &Profile, processor: &Processor) -> Result<Vec<(u32, Answer)>, ProfileError> {
    let default = returned(profile.default_action, profile.default_errno_ret);
    let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
    for rule in &profile.syscalls {
        let action = returned(rule.action, rule.errno_ret);
        let alternatives = alternatives(rule)?;
        for number in rule
            .names
            .iter()
            .filter_map(|name| (processor.number)(name))
        {
            let known = answers.remove(&number);
            let answer = match (known, alternatives.is_empty()) {
                (Some(Answer::Plain(first)), _) => Answer::Plain(first),
                (_, true) => Answer::Plain(action),
                (known, false) => {
                    let mut all = match known {
                        Some(Answer::ByArguments(all, _)) => all,
                        _ => Vec::new(),
                    };
                    all.extend(alternatives.iter().map(|one| (one.clone(), action)));
                    Answer::ByArguments(all, default)
                }
            };
            answers.insert(number, answer);
        }
    }
    let mut ranges = vec![(0, Answer::Plain(default))];
    let mut push = |from: u32, answer: Answer| match ranges.last_mut() {
        Some((_, last)) if *last == answer => {}
        Some((at, last)) if *at == from => *last = answer,
        _ => ranges.push((from, answer)),
    };
    for (number, answer) in answers {
        push(number, answer);
        push(number.saturating_add(1), Answer::Plain(default));
    }
    Ok(ranges)
}

/// What of its arguments makes a rule hold: all of one list. Several looks at one argument are
/// alternatives, as other runtimes have it.
fn alternatives(rule: &Rule) -> Result<Vec<Vec<Condition>>, ProfileError> {
    let arguments = rule.args.as_deref().unwrap_or_default();
    if let Some(argument) = arguments.iter().find(|a| a.index > 5) {
        return Err(ProfileError::Index(argument.index));
    }
    let condition = |a: &Argument| (a.index, a.op, a.value, a.value_two);
    let again = |a: &Argument| arguments.iter().filter(|b| b.index == a.index).count() > 1;
    if arguments.iter().any(again) {
        return Ok(arguments.iter().map(|a| vec![condition(a)]).collect());
    }
    let all: Vec<_> = arguments.iter().map(condition).collect();
    Ok(if all.is_empty() { vec![] } else { vec![all] })
}

fn returned(action: Action, errno: Option<u32>) -> u32 {
    let number = errno.unwrap_or(EPERM) & 0xffff;
    match action {
        Action::KillThread => 0,
        Action::KillProcess => KILL_PROCESS,
        Action::Trap => 0x0003_0000,
        Action::Errno => ERRNO | number,
        Action::Trace => 0x7ff0_0000 | number,
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

fn load(at: u32) -> Filter {
    jump(LOAD, at, 0, 0)
}

fn give_back(what: u32) -> Filter {
    jump(RETURN, what, 0, 0)
}

/// Over so many instructions.
fn far(over: usize) -> Filter {
    // More than the kernel takes is refused later.
    jump(JUMP, u32::try_from(over).unwrap_or(u32::MAX), 0, 0)
}

fn jump(code: u16, k: u32, yes: u8, no: u8) -> Filter {
    Filter { code, yes, no, k }
}

/// The call's number is loaded.
fn halve(out: &mut Vec<Filter>, ranges: &[(u32, Answer)]) {
    match ranges {
        [] => {}
        [(_, answer)] => give(out, answer),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            halve(&mut below, lower);
            out.push(jump(JUMP_GREATER_EQUAL, upper[0].0, 0, 1));
            out.push(far(below.len()));
            out.append(&mut below);
            halve(out, upper);
        }
    }
}

fn give(out: &mut Vec<Filter>, answer: &Answer) {
    match answer {
        Answer::Plain(what) => out.push(give_back(*what)),
        Answer::ByArguments(rules, otherwise) => {
            for (conditions, what) in rules {
                let mut rule = vec![give_back(*what)];
                // From its end, so that each knows how far it is to where it does not hold.
                for condition in conditions.iter().rev() {
                    let fails = rule.len();
                    let mut all = look(condition, fails);
                    all.append(&mut rule);
                    rule = all;
                }
                out.append(&mut rule);
            }
            out.push(give_back(*otherwise));
        }
    }
}

/// Goes on after itself where a condition holds, else over `fails` more instructions. A rule has at
/// most six, of at most six instructions each: jumps are short.
fn look(&(index, operator, value, second): &Condition, fails: usize) -> Vec<Filter> {
    let fails = u8::try_from(fails).unwrap_or(u8::MAX);
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let ((high, low), (high_two, low_two)) = (halves(value), halves(second));
    let low_at = ARGUMENTS_AT + 8 * index;
    let (load_low, load_high) = (load(low_at), load(low_at + 4));
    // The upper half decides unless it is equal.
    let ordered = |larger_holds: bool, code: u16| {
        let (larger, smaller) = if larger_holds {
            (3, fails + 2)
        } else {
            (fails + 3, 2)
        };
        let (yes, no) = if larger_holds { (0, fails) } else { (fails, 0) };
        vec![
            load_high,
            jump(JUMP_GREATER, high, larger, 0),
            jump(JUMP_EQUAL, high, 0, smaller),
            load_low,
            jump(code, low, yes, no),
        ]
    };
    match operator {
        Operator::Equal => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, fails + 2),
            load_low,
            jump(JUMP_EQUAL, low, 0, fails),
        ],
        Operator::NotEqual => vec![
            load_high,
            jump(JUMP_EQUAL, high, 0, 2),
            load_low,
            jump(JUMP_EQUAL, low, fails, 0),
        ],
        Operator::MaskedEqual => vec![
            load_high,
            jump(AND, high, 0, 0),
            jump(JUMP_EQUAL, high_two, 0, fails + 3),
            load_low,
            jump(AND, low, 0, 0),
            jump(JUMP_EQUAL, low_two, 0, fails),
        ],
        Operator::Greater => ordered(true, JUMP_GREATER),
        Operator::GreaterEqual => ordered(true, JUMP_GREATER_EQUAL),
        Operator::Less => ordered(false, JUMP_GREATER_EQUAL),
        Operator::LessEqual => ordered(false, JUMP_GREATER),
    }
}

#[cfg(test)]
mod tests;
