//! A `wasi:http` 0.3 component that behaves well or badly as its request's path says.
//!
//! - `/count` answers how many requests this instance has served
//! - `/slow?N` answers after N milliseconds; others are served meanwhile
//! - `/trap` traps, `/spin` never ends, `/eat?N` takes N MiB of memory and answers

use std::cell::Cell;
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Trials;

wasip3::http::service::export!(Trials);

thread_local! {
    static SERVED: Cell<u32> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Trials {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let served = SERVED.get() + 1;
        SERVED.set(served);
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(match path {
            "/count" => answer(served.to_string()),
            "/slow" => {
                wait_for(query.parse::<u64>().unwrap() * 1_000_000).await;
                answer(format!("slept, {} served", SERVED.get()))
            }
            "/trap" => panic!("asked to"),
            "/spin" => loop {
                std::hint::spin_loop();
            },
            "/eat" => {
                let eaten = vec![1u8; query.parse::<usize>().unwrap() << 20];
                answer(format!("ate {}", std::hint::black_box(eaten).len()))
            }
            _ => answer("trials".into()),
        })
    }
}

fn answer(text: String) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(reader), trailers_reader);
    drop(trailers);
    wit_bindgen::spawn_local(async move {
        body.write_all(text.into_bytes()).await;
    });
    response
}
