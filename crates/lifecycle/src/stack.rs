//! Services that stop in the reverse of their start.

use futures::future::BoxFuture;
use std::fmt;
use std::time::Duration;

/// A service that did not stop in its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stop {name}: still running after {deadline:?}")]
pub struct Laggard {
    /// The service's name.
    pub name: &'static str,
    /// The time that it had.
    pub deadline: Duration,
}

struct Service {
    name: &'static str,
    deadline: Duration,
    stop: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

/// Started services, the last started on top.
#[derive(Default)]
pub struct Stack {
    services: Vec<Service>,
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.services.iter().map(|s| s.name))
            .finish()
    }
}

impl Stack {
    /// An empty stack.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a started service on top; `stop` drains and ends it.
    pub fn push<F, Fut>(&mut self, name: &'static str, deadline: Duration, stop: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.services.push(Service {
            name,
            deadline,
            stop: Box::new(move || Box::pin(stop())),
        });
    }

    /// Stops all, the last started first; goes on past a laggard and reports it.
    pub async fn stop(mut self) -> Vec<Laggard> {
        let mut laggards = Vec::new();
        while let Some(Service {
            name,
            deadline,
            stop,
        }) = self.services.pop()
        {
            tracing::debug!(service = name, "stopping");
            if tokio::time::timeout(deadline, stop()).await.is_err() {
                laggards.push(Laggard { name, deadline });
            }
        }
        laggards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test(start_paused = true)]
    async fn stops_in_reverse_and_names_the_laggard() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut stack = Stack::new();
        for name in ["store", "apiserver"] {
            let order = order.clone();
            stack.push(name, Duration::from_secs(1), move || async move {
                order.lock().unwrap().push(name)
            });
        }
        stack.push("node", Duration::from_secs(2), std::future::pending::<()>);
        let laggards = stack.stop().await;
        assert_eq!(*order.lock().unwrap(), ["apiserver", "store"]);
        assert_eq!(
            laggards,
            [Laggard {
                name: "node",
                deadline: Duration::from_secs(2)
            }]
        );
        assert_eq!(laggards[0].to_string(), "stop node: still running after 2s");
    }
}
