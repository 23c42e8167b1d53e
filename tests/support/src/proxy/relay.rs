//! One client connection of the fault proxy: read a request whole, apply the fault that is due, relay the answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::http::{Message, Reader, first_line, header, without};
use super::{Fault, Gate, Seen, Shared};

const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// How a request ended for its connection.
enum Next {
    KeepOpen,
    Reset,
}

/// Relays the requests of one client until it closes or a fault ends the connection.
pub(super) async fn serve(client: TcpStream, upstream: SocketAddr, shared: Arc<Shared>) {
    // Nagle against delayed ACK costs 40 ms an answer; a refusal to switch it off costs only time.
    let _ = client.set_nodelay(true);
    let (read, mut write) = client.into_split();
    let mut read = Reader::new(read);
    loop {
        match one(&mut read, &mut write, upstream, &shared).await {
            Ok(Some(Next::KeepOpen)) => {}
            Ok(Some(Next::Reset)) | Err(_) => {
                // With a zero linger the close below is a reset, not an orderly end.
                let _ = write.as_ref().set_zero_linger();
                return;
            }
            Ok(None) => return,
        }
    }
}

async fn one(
    read: &mut Reader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    upstream: SocketAddr,
    shared: &Shared,
) -> io::Result<Option<Next>> {
    let Some(head) = read.head().await? else {
        return Ok(None);
    };
    let head = if header(&head, "expect").is_some() {
        write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        without(&head, "expect")
    } else {
        head
    };
    let body = read.body(&head, false).await?;
    let mut line = first_line(&head).into_iter();
    let method = line.next().unwrap_or_default();
    let target = line.next().unwrap_or_default();
    let (key, query) = target.split_once('?').unwrap_or((&target, ""));
    let seen = Seen {
        method: method.clone(),
        key: key.to_owned(),
        query: query.to_owned(),
        head: head.clone(),
        request_bytes: body.len(),
        response_bytes: 0,
        status: None,
    };
    let (index, fault) = shared.arrive(seen);
    let request = Message { head, body };
    let forward = || async {
        let (status, answer) = exchange(upstream, &request, &method).await?;
        shared.answered(index, status, answer.body.len());
        Ok::<_, io::Error>(answer)
    };
    let answer = match fault {
        None => forward().await?,
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            forward().await?
        }
        Some(Fault::ResetBefore) => return Ok(Some(Next::Reset)),
        Some(Fault::LoseAnswer) => {
            forward().await?;
            return Ok(Some(Next::Reset));
        }
        Some(Fault::CutBody(length)) => {
            let answer = forward().await?;
            write.write_all(&answer.head).await?;
            write
                .write_all(answer.body.get(..length).unwrap_or(&answer.body))
                .await?;
            write.flush().await?;
            return Ok(Some(Next::Reset));
        }
        Some(Fault::SlowDown) => slow_down(&method),
        Some(Fault::Hold(gate)) => {
            pass(&gate).await;
            let answer = forward().await?;
            gate.done.send_modify(|done| *done += 1);
            answer
        }
        Some(Fault::Swallow) => {
            // Whatever the client still sends is not read as a request; its close ends this.
            while read.head().await?.is_some() {}
            return Ok(None);
        }
    };
    write.write_all(&answer.head).await?;
    write.write_all(&answer.body).await?;
    Ok(Some(Next::KeepOpen))
}

async fn pass(gate: &Gate) {
    gate.held.send_modify(|held| *held += 1);
    let mut open = gate.open.subscribe();
    // The sender lives in the gate borrowed here, so the wait ends by the value alone.
    let _ = open.wait_for(|open| *open).await;
}

fn slow_down(method: &str) -> Message {
    let head = format!(
        "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        SLOW_DOWN.len()
    );
    let body = if method == "HEAD" { "" } else { SLOW_DOWN };
    Message {
        head: head.into_bytes(),
        body: body.as_bytes().to_vec(),
    }
}

/// Sends a request on a connection of its own and reads the final answer.
async fn exchange(
    upstream: SocketAddr,
    request: &Message,
    method: &str,
) -> io::Result<(u16, Message)> {
    let stream = TcpStream::connect(upstream).await?;
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.into_split();
    write.write_all(&request.head).await?;
    write.write_all(&request.body).await?;
    let mut read = Reader::new(read);
    loop {
        let head = read.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status: u16 = first_line(&head)
            .get(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_default();
        if (100..200).contains(&status) {
            continue;
        }
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        let body = if bodiless {
            Vec::new()
        } else {
            read.body(&head, true).await?
        };
        return Ok((status, Message { head, body }));
    }
}
