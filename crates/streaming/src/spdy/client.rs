//! A client, for tests.

use super::frame::{Frame, Head, Kind, control, data_head, parse_head};
use super::headers::{Headers, Packer, Unpacker};
use std::collections::{HashMap, HashSet};
use tokio::io::{
    AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf,
};

pub(super) struct Client {
    read: BufReader<ReadHalf<DuplexStream>>,
    write: WriteHalf<DuplexStream>,
    packer: Packer,
    unpacker: Unpacker,
    next: u32,
    taken: HashSet<u32>,
    reset: HashSet<u32>,
    heard: HashMap<u32, Vec<u8>>,
    ended: HashSet<u32>,
    pings: Vec<u32>,
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn new(stream: DuplexStream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            read: BufReader::new(read),
            write,
            packer: Packer::new().unwrap(),
            unpacker: Unpacker::default(),
            next: 1,
            taken: HashSet::new(),
            reset: HashSet::new(),
            heard: HashMap::new(),
            ended: HashSet::new(),
            pings: Vec::new(),
            gone: false,
        }
    }

    /// Opens a stream and waits until it is taken.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)], fin: bool) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = headers.iter().map(|(n, v)| (n.to_string(), v.to_string()));
        let headers = self.packer.pack(&Headers(headers.collect())).unwrap();
        let parts: [&[u8]; 3] = [&stream.to_be_bytes(), &[0; 6], &headers];
        let frame = control(Kind::Open, u8::from(fin), &parts);
        self.write.write_all(&frame).await.unwrap();
        self.until(|c| c.taken.contains(&stream) || c.reset.contains(&stream))
            .await;
        stream
    }

    pub(super) async fn say(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let mut frame = data_head(stream, fin, bytes.len());
        frame.extend_from_slice(bytes);
        self.write.write_all(&frame).await.unwrap();
    }

    pub(super) async fn ping(&mut self, number: u32) {
        let frame = control(Kind::Ping, 0, &[&number.to_be_bytes()]);
        self.write.write_all(&frame).await.unwrap();
        self.until(|c| c.pings.contains(&number)).await;
    }

    pub(super) fn heard(&self, stream: u32) -> &[u8] {
        self.heard.get(&stream).map_or(&[], Vec::as_slice)
    }

    pub(super) fn ended(&self, stream: u32) -> bool {
        self.ended.contains(&stream)
    }

    pub(super) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let mut head = [0; 8];
            self.read.read_exact(&mut head).await.unwrap();
            let length = match parse_head(head).unwrap() {
                Head::Data { length, .. } | Head::Control { length, .. } => length,
            };
            let mut payload = vec![0; length as usize];
            self.read.read_exact(&mut payload).await.unwrap();
            match parse_head(head).unwrap() {
                Head::Data { stream, fin, .. } => {
                    self.heard.entry(stream).or_default().extend(payload);
                    if fin {
                        self.ended.insert(stream);
                    }
                }
                Head::Control { kind, flags, .. } => {
                    match Frame::parse(kind, flags, &payload, &mut self.unpacker).unwrap() {
                        Frame::Taken { stream, .. } => drop(self.taken.insert(stream)),
                        Frame::Reset { stream, .. } => drop(self.reset.insert(stream)),
                        Frame::Ping(number) => self.pings.push(number),
                        Frame::GoAway { .. } => self.gone = true,
                        _ => {}
                    }
                }
            }
        }
    }
}
