//! A web server for stories: `world serve ADDRESS:PORT` answers every request with the host it was asked for and
//! the address that it saw the caller under. Says `listening` on stdout once it does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

pub(crate) fn forever(address: &str) -> Result<ExitCode> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening").and_then(|()| stdout.flush()).context("write to the test")?;
    for stream in listener.incoming() {
        // A caller that goes away early is the caller's story, not the server's end.
        if let Err(error) = stream.map_err(anyhow::Error::from).and_then(answer) {
            crate::complain(&format!("world serve: {error:#}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr().context("ask for the caller's address")?.ip().to_canonical();
    let mut host = String::from("nobody");
    for line in BufReader::new(&stream).lines() {
        let line = line.context("read the request")?;
        if line.is_empty() {
            break;
        }
        if let Some(named) = line.strip_prefix("Host: ") {
            host = named.to_owned();
        }
    }
    let body = format!("{host} called by {peer}\n");
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .context("write the answer")
}
