//! What agent and runtime say to each other over the unix socket.
//!
//! A frame is a length (four bytes, big endian) and so many bytes of JSON. The agent greets with
//! its protocol number and the host answers with its own or refuses; then requests with ids go
//! one way, and replies in any order and hints of change the other. Fields may be added without
//! a new number; anything else needs one, but for what is asked on a connection of its own
//! (sessions): a host that knows no such question ends that connection.

use runtime::{
    AttachSpec, Changed, ContainerId, ContainerSpec, ContainerStats, ExecSpec, RuntimeError,
    SandboxId, SandboxSpec, SandboxStatus, ServiceName, ServiceTraffic,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The number of this protocol.
pub const PROTOCOL: u32 = 3;

/// Largest frame: the status of some 50,000 pods. A larger one ends the connection.
const FRAME_MAX_BYTES: u32 = 64 << 20;

/// From agent to host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToHost {
    Hello {
        protocol: u32,
    },
    Request {
        id: u64,
        call: Call,
    },
    /// Instead of a greeting: what follows the reply is a session (`session`).
    Exec(Box<ExecSpec>),
    /// As `Exec`.
    Attach(Box<AttachSpec>),
}

/// An operation of [`runtime::PodRuntime`] or [`runtime::Traffic`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Call {
    RunSandbox(Box<SandboxSpec>),
    CreateContainer(Box<ContainerSpec>),
    StartContainer(ContainerId),
    StopContainer { id: ContainerId, grace_ms: u64 },
    RemoveContainer(ContainerId),
    RemoveSandbox(SandboxId),
    Wake(SandboxId),
    Adopted(SandboxId),
    Contact { at_ms: u64 },
    Sandboxes,
    Sandbox(SandboxId),
    Stats,
    Traffic(Vec<ServiceName>),
    Metrics,
}

/// From host to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum FromHost {
    Hello {
        protocol: u32,
        version: String,
    },
    Refused {
        reason: String,
    },
    Reply {
        id: u64,
        result: Result<Answer, RuntimeError>,
    },
    Changed(Changed),
    /// Hints were dropped because the agent read too slowly: list again.
    ChangesLost,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Sandboxes(Vec<SandboxStatus>),
    Sandbox(Option<SandboxStatus>),
    Stats(Vec<(ContainerId, ContainerStats)>),
    Traffic(Vec<ServiceTraffic>),
    Metrics(String),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket failed.
    #[error("use the socket")]
    Io(#[from] std::io::Error),
    /// The other side closed it.
    #[error("read the next message: the other side closed the connection")]
    Closed,
    /// A frame is too large.
    #[error("read a message of {0} bytes: more than {FRAME_MAX_BYTES}")]
    TooLarge(u64),
    /// A frame is no message.
    #[error("read a message")]
    Malformed(#[from] serde_json::Error),
    /// The versions do not fit.
    #[error("{0}")]
    Refused(String),
    /// A message that does not belong there.
    #[error("read a message: {0} out of turn")]
    OutOfTurn(&'static str),
}

/// Reads and writes frames.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S> Frames<S> {
    /// The stream; nothing was read beyond the last message.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// Frames over a stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> Frames<S> {
    /// The next message. Not cancel-safe: a dropped read loses the connection's place.
    ///
    /// # Errors
    /// When the connection ended or what came is no message.
    pub async fn read<T: DeserializeOwned>(&mut self) -> Result<T, ProtocolError> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ProtocolError::Closed);
            }
            Err(error) => return Err(error.into()),
        }
        let length = u32::from_be_bytes(length);
        if length > FRAME_MAX_BYTES {
            return Err(ProtocolError::TooLarge(length.into()));
        }
        // Grows with what arrives, not with what was announced.
        self.buffer.clear();
        let read = (&mut self.stream)
            .take(length.into())
            .read_to_end(&mut self.buffer)
            .await?;
        if read < length as usize {
            return Err(ProtocolError::Closed);
        }
        let message = serde_json::from_slice(&self.buffer)?;
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(message)
    }
}

/// A buffer that a large message left is not kept.
const BUFFER_KEPT_BYTES: usize = 64 << 10;

impl<S: AsyncWrite + Unpin> Frames<S> {
    /// Sends a message.
    ///
    /// # Errors
    /// When the connection ended or the message is too large.
    pub async fn write<T: Serialize>(&mut self, message: &T) -> Result<(), ProtocolError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.buffer, message)?;
        let length = (self.buffer.len() - 4) as u64;
        match u32::try_from(length) {
            Ok(fits) if fits <= FRAME_MAX_BYTES => {
                self.buffer[..4].copy_from_slice(&fits.to_be_bytes());
            }
            _ => return Err(ProtocolError::TooLarge(length)),
        }
        self.stream.write_all(&self.buffer).await?;
        self.stream.flush().await?;
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use runtime::{Artifact, ContainerState, ContainerStatus, Dns, Exit, ExitReason, Mount, Port};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn text() -> impl Strategy<Value = String> {
        ".{0,12}"
    }

    fn container_spec() -> impl Strategy<Value = ContainerSpec> {
        (
            text(),
            prop::collection::vec(text(), 0..3),
            prop::collection::vec((text(), text()), 0..3),
            prop::option::of(any::<u64>()),
            any::<u16>(),
            any::<bool>(),
        )
            .prop_map(|(name, args, env, limit, port, flag)| ContainerSpec {
                id: ContainerId(format!("{name}/0")),
                sandbox: SandboxId(name.clone()),
                name: name.clone(),
                attempt: port.into(),
                image: name.clone(),
                artifact: Artifact::Wasm {
                    digest: name.clone(),
                    path: name.clone().into(),
                    rootfs: flag.then(|| "/x".into()),
                },
                args,
                env,
                mounts: vec![Mount {
                    host_path: name.clone().into(),
                    guest_path: "/data".into(),
                    read_only: flag,
                    ..Mount::default()
                }],
                ports: vec![Port {
                    name: name.clone(),
                    number: port,
                    protocol: "TCP".into(),
                }],
                memory_limit_bytes: limit,
                cpu_request_millis: port.into(),
                cpu_limit_millis: limit,
                working_dir: flag.then(|| name.clone()),
                log_path: name.into(),
                tty: flag,
                stdin: flag,
                stdin_once: flag,
                linux: None,
            })
    }

    fn to_host() -> impl Strategy<Value = ToHost> {
        let call = prop_oneof![
            (text(), any::<[u8; 4]>(), prop::option::of(any::<u64>())).prop_map(
                |(name, ip, limit)| Call::RunSandbox(Box::new(SandboxSpec {
                    id: SandboxId(name.clone()),
                    namespace: name.clone(),
                    name: name.clone(),
                    labels: [(name.clone(), name.clone())].into(),
                    annotations: [(name.clone(), name.clone())].into(),
                    hostname: name,
                    ip: ip.into(),
                    memory_limit_bytes: limit,
                    dns: Dns::default(),
                    standby: limit.is_some(),
                    dies_after_silence_ms: limit,
                    linux: None,
                }))
            ),
            container_spec().prop_map(|spec| Call::CreateContainer(Box::new(spec))),
            (text(), any::<u64>()).prop_map(|(id, grace_ms)| Call::StopContainer {
                id: ContainerId(id),
                grace_ms
            }),
            text().prop_map(|id| Call::StartContainer(ContainerId(id))),
            Just(Call::Sandboxes),
            Just(Call::Stats),
            any::<u64>().prop_map(|at_ms| Call::Contact { at_ms }),
            text().prop_map(|id| Call::Wake(SandboxId(id))),
            text().prop_map(|name| Call::Traffic(vec![ServiceName {
                namespace: name.clone(),
                name
            }])),
        ];
        prop_oneof![
            any::<u32>().prop_map(|protocol| ToHost::Hello { protocol }),
            (any::<u64>(), call).prop_map(|(id, call)| ToHost::Request { id, call }),
        ]
    }

    fn from_host() -> impl Strategy<Value = FromHost> {
        let status =
            (text(), any::<i64>(), any::<i32>()).prop_map(|(name, time, code)| SandboxStatus {
                id: SandboxId(name.clone()),
                namespace: name.clone(),
                name: name.clone(),
                ip: [127, 0, 0, 1].into(),
                containers: vec![ContainerStatus {
                    id: ContainerId(name.clone()),
                    name: name.clone(),
                    attempt: 0,
                    image: name.clone(),
                    state: ContainerState::Exited(Exit {
                        code,
                        reason: ExitReason::OomKilled,
                        message: name,
                        started_ms: time,
                        finished_ms: time,
                    }),
                }],
                standby: code > 0,
                beside: code < 0,
            });
        prop_oneof![
            text().prop_map(|version| FromHost::Hello {
                protocol: 1,
                version
            }),
            (any::<u64>(), prop::collection::vec(status, 0..3)).prop_map(|(id, list)| {
                FromHost::Reply {
                    id,
                    result: Ok(Answer::Sandboxes(list)),
                }
            }),
            (any::<u64>(), text()).prop_map(|(id, message)| FromHost::Reply {
                id,
                result: Err(RuntimeError::CreateContainer(message)),
            }),
            text().prop_map(|id| FromHost::Changed(Changed(SandboxId(id)))),
            Just(FromHost::ChangesLost),
        ]
    }

    fn check_round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        messages: &[T],
    ) {
        block_on(async {
            let mut writer = Frames::new(Vec::new());
            for message in messages {
                writer.write(message).await.unwrap();
            }
            let bytes = writer.stream;
            let mut reader = Frames::new(bytes.as_slice());
            for message in messages {
                assert_eq!(&reader.read::<T>().await.unwrap(), message);
            }
            assert!(matches!(
                reader.read::<T>().await,
                Err(ProtocolError::Closed)
            ));
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn messages_come_back(
            to in prop::collection::vec(to_host(), 0..4),
            from in prop::collection::vec(from_host(), 0..4),
        ) {
            check_round_trip(&to);
            check_round_trip(&from);
        }

        #[test]
        fn noise_is_an_error_and_no_panic(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            framed in any::<bool>(),
        ) {
            let bytes = if framed {
                let mut bytes = u32::try_from(noise.len()).unwrap().to_be_bytes().to_vec();
                bytes.extend_from_slice(&noise);
                bytes
            } else {
                noise
            };
            block_on(async {
                prop_assert!(Frames::new(bytes.as_slice()).read::<ToHost>().await.is_err());
                prop_assert!(Frames::new(bytes.as_slice()).read::<FromHost>().await.is_err());
                Ok(())
            })?;
        }

        #[test]
        fn a_cut_message_is_an_error(message in to_host(), cut in any::<prop::sample::Index>()) {
            block_on(async {
                let mut writer = Frames::new(Vec::new());
                writer.write(&message).await.unwrap();
                let bytes = &writer.stream[..cut.index(writer.stream.len())];
                prop_assert!(Frames::new(bytes).read::<ToHost>().await.is_err());
                Ok(())
            })?;
        }
    }

    #[test]
    fn an_announced_giant_is_refused_before_memory_is_taken() {
        let bytes = u32::MAX.to_be_bytes();
        let read = block_on(Frames::new(bytes.as_slice()).read::<ToHost>().boxed_local());
        assert!(matches!(read, Err(ProtocolError::TooLarge(_))));
    }

    use futures::FutureExt as _;
}
