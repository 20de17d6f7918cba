//! A `wasi:http` 0.2 component that shows its settings, keeps values and logs, by the draft
//! interfaces for that. For tests only.
//!
//! | path | what happens |
//! |---|---|
//! | `/config?KEY` | that setting, or 404 |
//! | `/log?TEXT` | a warning of `keeper` |
//! | `/set?KEY=VALUE`, `/get?KEY`, `/delete?KEY` | one value |
//! | `/add?KEY` | adds one and answers the number |
//! | `/keys` | all keys, one a line |

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wit_bindgen::generate!({
    inline: "
        package salp:keeper;

        world keeper {
            import wasi:config/store@0.2.0-rc.1;
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            import wasi:logging/logging@0.1.0-draft;
        }

        package wasi:config@0.2.0-rc.1 {
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
        }

        package wasi:keyvalue@0.2.0-draft {
            interface store {
                variant error { no-such-store, access-denied, other(string) }
                record key-response { keys: list<string>, cursor: option<u64> }
                open: func(identifier: string) -> result<bucket, error>;
                resource bucket {
                    get: func(key: string) -> result<option<list<u8>>, error>;
                    set: func(key: string, value: list<u8>) -> result<_, error>;
                    delete: func(key: string) -> result<_, error>;
                    exists: func(key: string) -> result<bool, error>;
                    list-keys: func(cursor: option<u64>) -> result<key-response, error>;
                }
            }
            interface atomics {
                use store.{bucket, error};
                increment: func(bucket: borrow<bucket>, key: string, delta: u64) -> result<u64, error>;
            }
        }

        package wasi:logging@0.1.0-draft {
            interface logging {
                enum level { trace, debug, info, warn, error, critical }
                log: func(level: level, context: string, message: string);
            }
        }
    ",
    generate_all,
});

use wasi::config::store as config;
use wasi::keyvalue::{atomics, store};
use wasi::logging::logging;

struct Keeper;

wasip2::http::proxy::export!(Keeper);

impl Guest for Keeper {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (status, body) = match act(path, query) {
            Ok(Some(body)) => (200, body),
            Ok(None) => (404, "none".to_owned()),
            Err(error) => (500, error),
        };
        answer(out, status, &body);
    }
}

fn act(path: &str, query: &str) -> Result<Option<String>, String> {
    let bucket = || store::open("").map_err(|e| format!("{e:?}"));
    let done = |result: Result<(), store::Error>| match result {
        Ok(()) => Ok(Some("done".to_owned())),
        Err(error) => Err(format!("{error:?}")),
    };
    match path {
        "/config" => config::get(query).map_err(|e| format!("{e:?}")),
        "/log" => {
            logging::log(logging::Level::Warn, "keeper", query);
            Ok(Some("logged".to_owned()))
        }
        "/set" => {
            let (key, value) = query.split_once('=').unwrap_or((query, ""));
            done(bucket()?.set(key, value.as_bytes()))
        }
        "/get" => {
            let value = bucket()?.get(query).map_err(|e| format!("{e:?}"))?;
            Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
        }
        "/delete" => done(bucket()?.delete(query)),
        "/add" => {
            let number = atomics::increment(&bucket()?, query, 1);
            Ok(Some(number.map_err(|e| format!("{e:?}"))?.to_string()))
        }
        "/keys" => {
            let found = bucket()?.list_keys(None).map_err(|e| format!("{e:?}"))?;
            Ok(Some(found.keys.join("\n")))
        }
        _ => Ok(None),
    }
}

fn answer(out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}
