//! Tasks that end together.

use std::future::Future;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A set of tasks with one cancellation token. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Scope {
    /// A scope of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope that is cancelled with this one but is closed by itself.
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tasks: TaskTracker::new(),
        }
    }

    /// The token that tasks watch.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a task to its end; it must watch the token itself if it can run for long.
    /// The task keeps the current tracing span.
    #[allow(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tasks.track_future(task.in_current_span()))
    }

    /// Runs a task that is dropped at its next await point once the scope is cancelled.
    pub fn spawn_cancellable<F>(&self, task: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(async move { token.run_until_cancelled(task).await })
    }

    /// How many tasks run.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Cancels the token and waits until nothing runs.
    pub async fn close(&self) {
        self.token.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// [`Scope::close`] with a deadline; the number of tasks still running when it passed.
    ///
    /// # Errors
    /// That number, when it is not zero.
    pub async fn close_within(&self, deadline: Duration) -> Result<(), usize> {
        tokio::time::timeout(deadline, self.close())
            .await
            .map_err(|_| self.tasks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn close_waits_for_the_last_task() {
        let scope = Scope::new();
        let token = scope.token().clone();
        let task = scope.spawn(async move {
            token.cancelled().await;
            tokio::task::yield_now().await;
            7
        });
        scope.close().await;
        assert!(task.is_finished());
        assert_eq!(task.await.ok(), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn close_within_counts_laggards() {
        let scope = Scope::new();
        scope.spawn(std::future::pending::<()>());
        scope.spawn_cancellable(std::future::pending::<()>());
        assert_eq!(scope.close_within(Duration::from_secs(1)).await, Err(1));
    }

    #[tokio::test]
    async fn a_child_is_cancelled_with_its_parent() {
        let parent = Scope::new();
        let child = parent.child();
        parent.close().await;
        assert!(child.token().is_cancelled());
    }
}
