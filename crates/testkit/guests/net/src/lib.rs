//! A `wasi:cli` 0.2 command that uses `wasi:sockets` as its arguments say. For tests only.
//!
//! - `net serve ADDRESS:PORT NAME` answers each line of each connection, one after the other,
//!   with `NAME: LINE`
//! - `net lookup HOST` prints its addresses, one a line
//! - `net ask HOST PORT LINE` looks the host up, sends the line and prints the answer
//!
//! What fails is printed as `failed: …`, and the exit code is then 1.

use wasip2::cli::environment::get_arguments;
use wasip2::cli::stdout::get_stdout;
use wasip2::io::streams::{InputStream, OutputStream};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

struct Net;

wasip2::cli::command::export!(Net);

impl wasip2::exports::cli::run::Guest for Net {
    fn run() -> Result<(), ()> {
        let args = get_arguments();
        let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
        let done = match words[..] {
            ["serve", address, name] => serve(address, name),
            ["lookup", host] => lookup(host).map(|found| {
                found.into_iter().for_each(|ip| print(&text(ip)));
            }),
            ["ask", host, port, line] => ask(host, port, line).map(|answer| print(&answer)),
            _ => Err("bad arguments".to_owned()),
        };
        done.map_err(|why| print(&format!("failed: {why}")))
    }
}

fn print(line: &str) {
    let _ = get_stdout().blocking_write_and_flush(format!("{line}\n").as_bytes());
}

fn said(what: &str) -> impl Fn(ErrorCode) -> String {
    move |code| format!("{what}: {}", code.name())
}

fn serve(address: &str, name: &str) -> Result<(), String> {
    let address = parse(address).ok_or("no address")?;
    let socket = create_tcp_socket(family(address)).map_err(said("create"))?;
    socket
        .start_bind(&instance_network(), address)
        .map_err(said("bind"))?;
    socket.finish_bind().map_err(said("bind"))?;
    socket.start_listen().map_err(said("listen"))?;
    socket.finish_listen().map_err(said("listen"))?;
    let IpSocketAddress::Ipv4(own) = socket.local_address().map_err(said("address"))? else {
        return Err("not an IPv4 address".to_owned());
    };
    print(&format!("{name} listens at {}", text(IpAddress::Ipv4(own.address))));
    let ready = socket.subscribe();
    loop {
        match socket.accept() {
            Ok((_client, input, output)) => {
                while let Some(line) = read_line(&input) {
                    if write(&output, &format!("{name}: {line}\n")).is_none() {
                        break;
                    }
                }
            }
            Err(ErrorCode::WouldBlock) => ready.block(),
            Err(code) => return Err(said("accept")(code)),
        }
    }
}

fn lookup(host: &str) -> Result<Vec<IpAddress>, String> {
    let stream = resolve_addresses(&instance_network(), host).map_err(said("lookup"))?;
    let ready = stream.subscribe();
    let mut found = Vec::new();
    loop {
        match stream.resolve_next_address() {
            Ok(Some(address)) => found.push(address),
            Ok(None) => return Ok(found),
            Err(ErrorCode::WouldBlock) => ready.block(),
            Err(code) => return Err(said("lookup")(code)),
        }
    }
}

fn ask(host: &str, port: &str, line: &str) -> Result<String, String> {
    let port = port.parse().map_err(|_| "no port")?;
    let ip = lookup(host)?.into_iter().next().ok_or("no address")?;
    let address = with_port(ip, port);
    let socket = create_tcp_socket(family(address)).map_err(said("create"))?;
    socket
        .start_connect(&instance_network(), address)
        .map_err(said("connect"))?;
    let (input, output) = finish_connect(&socket)?;
    write(&output, &format!("{line}\n")).ok_or("write")?;
    read_line(&input).ok_or_else(|| "no answer".to_owned())
}

fn finish_connect(socket: &TcpSocket) -> Result<(InputStream, OutputStream), String> {
    let ready = socket.subscribe();
    loop {
        match socket.finish_connect() {
            Ok(streams) => return Ok(streams),
            Err(ErrorCode::WouldBlock) => ready.block(),
            Err(code) => return Err(said("connect")(code)),
        }
    }
}

fn read_line(input: &InputStream) -> Option<String> {
    let mut line = Vec::new();
    loop {
        for byte in input.blocking_read(1).ok()? {
            if byte == b'\n' {
                return String::from_utf8(line).ok();
            }
            line.push(byte);
        }
    }
}

fn write(output: &OutputStream, text: &str) -> Option<()> {
    output.blocking_write_and_flush(text.as_bytes()).ok()
}

fn parse(address: &str) -> Option<IpSocketAddress> {
    let address: std::net::SocketAddr = address.parse().ok()?;
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) => IpAddress::Ipv4(ip.octets().into()),
        std::net::IpAddr::V6(ip) => IpAddress::Ipv6(ip.segments().into()),
    };
    Some(with_port(ip, address.port()))
}

fn with_port(ip: IpAddress, port: u16) -> IpSocketAddress {
    match ip {
        IpAddress::Ipv4(address) => IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address }),
        IpAddress::Ipv6(address) => IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port,
            flow_info: 0,
            address,
            scope_id: 0,
        }),
    }
}

fn family(address: IpSocketAddress) -> IpAddressFamily {
    match address {
        IpSocketAddress::Ipv4(_) => IpAddressFamily::Ipv4,
        IpSocketAddress::Ipv6(_) => IpAddressFamily::Ipv6,
    }
}

fn text(ip: IpAddress) -> String {
    match ip {
        IpAddress::Ipv4((a, b, c, d)) => std::net::Ipv4Addr::new(a, b, c, d).to_string(),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => {
            std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h).to_string()
        }
    }
}
