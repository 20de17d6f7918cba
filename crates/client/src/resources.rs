//! What a pod's containers come to together: what the scheduler and the nodes must agree on. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// The sum of the containers and sidecars, or the most that the init phase needs, whichever is
/// more; `of` is one container's amount, `add` adds to a sum and `raise` raises it to the greater.
pub fn of_containers<A: Clone + Default>(
    spec: &PodSpec,
    of: impl Fn(&Container) -> A,
    add: impl Fn(&mut A, &A),
    raise: impl Fn(&mut A, &A),
) -> A {
    let (mut all, mut beside, mut starting) = (A::default(), A::default(), A::default());
    for container in &spec.containers {
        add(&mut all, &of(container));
    }
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        let mut then = beside.clone();
        add(&mut then, &own);
        raise(&mut starting, &then);
        if container.restart_policy.as_deref() == Some("Always") {
            beside = then;
        }
    }
    add(&mut all, &beside);
    raise(&mut all, &starting);
    all
}
