//! How a list of processes goes from site to site: column by column, what occurs often once,
//! and compressed. Five thousand pods are some tens of kilobytes.
//!
//! A reader takes columns that it does not know for nothing, and those that are missing for
//! unknown, so that sites of different versions understand each other.

use super::processes::{Node, Process, Processes};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Read as _};

/// The content type.
pub const KIND: &str = "application/vnd.salp.processes+zstd";
/// Bytes of a list that is read, as it comes and unpacked; a longer one is refused. A hundred
/// thousand pods have room.
pub const LIST_MAX: u64 = 16 * 1024 * 1024;
/// The quickest is small enough.
const LEVEL: i32 = 1;

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Columns {
    /// What the columns of numbers of words stand for.
    words: Vec<String>,
    namespace: Vec<u32>,
    pod: Vec<String>,
    node: Vec<u32>,
    ip: Vec<String>,
    image: Vec<u32>,
    ready: Vec<u32>,
    state: Vec<u32>,
    restarts: Vec<u64>,
    age_seconds: Vec<i64>,
    cpu_cores: Vec<Option<f64>>,
    memory_bytes: Vec<Option<u64>>,
    requests_per_second: Vec<Option<f64>>,
    requests: Vec<Option<u64>>,
    instances: Vec<Option<u64>>,
    nodes: Vec<Node>,
}

/// Words by their numbers.
#[derive(Default)]
struct Words {
    list: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Words {
    fn number(&mut self, word: String) -> u32 {
        if let Some(number) = self.numbers.get(&word) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(word.clone());
        self.numbers.insert(word, number);
        number
    }
}

/// Packs a list.
///
/// # Errors
/// When the compressor has no memory.
pub fn encode(list: Processes) -> io::Result<Vec<u8>> {
    let mut words = Words::default();
    let mut c = Columns {
        nodes: list.nodes,
        ..Columns::default()
    };
    for p in list.processes {
        c.namespace.push(words.number(p.namespace));
        c.pod.push(p.pod);
        c.node.push(words.number(p.node));
        c.ip.push(p.ip);
        c.image.push(words.number(p.image));
        c.ready.push(words.number(p.ready));
        c.state.push(words.number(p.state));
        c.restarts.push(p.restarts);
        c.age_seconds.push(p.age_seconds);
        c.cpu_cores.push(p.cpu_cores);
        c.memory_bytes.push(p.memory_bytes);
        c.requests_per_second.push(p.requests_per_second);
        c.requests.push(p.requests);
        c.instances.push(p.instances);
    }
    c.words = words.list;
    let plain = serde_json::to_vec(&c)?;
    zstd::bulk::compress(&plain, LEVEL)
}

/// Reads a list.
///
/// # Errors
/// When it is none, or longer than [`LIST_MAX`].
pub fn decode(packed: &[u8]) -> io::Result<Processes> {
    let mut plain = Vec::new();
    let unpacking = zstd::stream::read::Decoder::new(packed)?;
    let read = unpacking.take(LIST_MAX + 1).read_to_end(&mut plain)?;
    if read as u64 > LIST_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut c: Columns = serde_json::from_slice(&plain)?;
    // It is shown in a terminal, which must not obey another site.
    let nodes = c.nodes.iter_mut().map(|node| &mut node.name);
    let texts = c.words.iter_mut().chain(&mut c.pod).chain(&mut c.ip);
    for text in texts.chain(nodes) {
        text.retain(|letter| !letter.is_control());
    }
    let word = |column: &[u32], row: usize| {
        let number = column.get(row).and_then(|n| usize::try_from(*n).ok());
        let word = number.and_then(|n| c.words.get(n));
        word.cloned().unwrap_or_default()
    };
    let pods = std::mem::take(&mut c.pod);
    let mut ips = std::mem::take(&mut c.ip).into_iter();
    let processes = pods.into_iter().enumerate().map(|(row, pod)| Process {
        site: None,
        namespace: word(&c.namespace, row),
        pod,
        node: word(&c.node, row),
        ip: ips.next().unwrap_or_default(),
        image: word(&c.image, row),
        ready: word(&c.ready, row),
        state: word(&c.state, row),
        restarts: c.restarts.get(row).copied().unwrap_or_default(),
        age_seconds: c.age_seconds.get(row).copied().unwrap_or_default(),
        cpu_cores: c.cpu_cores.get(row).copied().flatten(),
        memory_bytes: c.memory_bytes.get(row).copied().flatten(),
        requests_per_second: c.requests_per_second.get(row).copied().flatten(),
        requests: c.requests.get(row).copied().flatten(),
        instances: c.instances.get(row).copied().flatten(),
    });
    let processes = processes.collect();
    Ok(Processes {
        processes,
        nodes: c.nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pods: usize) -> Processes {
        let process = |n: usize| Process {
            site: None,
            namespace: "shop".to_owned(),
            pod: format!("till-6d5f8c7b9{n:x}"),
            node: "shop-1".to_owned(),
            ip: format!("10.42.{}.{}", n / 250, n % 250),
            image: "registry.shop.example/till:3".to_owned(),
            ready: "1/1".to_owned(),
            state: "Running".to_owned(),
            restarts: 0,
            age_seconds: 86_400 + n as i64 % 97,
            cpu_cores: (!n.is_multiple_of(3)).then_some(n as f64 / 1e4),
            memory_bytes: Some(3 << 20),
            requests_per_second: Some(0.0),
            requests: Some(n as u64 * 7),
            instances: None,
        };
        let nodes = vec![Node {
            site: None,
            name: "shop-1".to_owned(),
            ready: true,
            cpu_cores: 4.0,
            memory_bytes: 8 << 30,
            reached: true,
        }];
        Processes {
            processes: (0..pods).map(process).collect(),
            nodes,
        }
    }

    #[test]
    fn a_list_comes_out_as_it_went_in_and_is_small() {
        let packed = encode(list(5000)).unwrap();
        assert_eq!(decode(&packed).unwrap(), list(5000));
        assert!(packed.len() < 5000 * 30, "{}", packed.len());
        assert_eq!(decode(&encode(list(0)).unwrap()).unwrap(), list(0));
    }

    #[test]
    fn other_versions_are_understood_and_nonsense_is_refused() {
        let pack = |text: &str| zstd::bulk::compress(text.as_bytes(), LEVEL).unwrap();
        let other = r#"{"words":["shop"],"namespace":[0,9],"pod":["a","b"],"moods":[1,2]}"#;
        let read = decode(&pack(other)).unwrap().processes;
        assert_eq!((&*read[0].namespace, &*read[1].namespace), ("shop", ""));
        assert_eq!(read[1].memory_bytes, None);
        let rude = r#"{"words":["\u001b[2J"],"state":[0],"pod":["a\u0007"],"ip":["\n"]}"#;
        let read = decode(&pack(rude)).unwrap().processes.remove(0);
        assert_eq!((&*read.state, &*read.pod, &*read.ip), ("[2J", "a", ""));
        assert!(decode(b"[]").is_err());
        assert!(decode(&pack("7")).is_err());
        let cut = pack(other);
        assert!(decode(&cut[..cut.len() - 2]).is_err());
        // What unpacks to more than anybody has is given up.
        let bomb = pack(&" ".repeat(LIST_MAX as usize + 1));
        let error = decode(&bomb).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
