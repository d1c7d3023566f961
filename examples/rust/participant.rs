// The smallest participant in Rust, with nothing but its standard library: it asks the agent
// `research` a question, and takes one message out of its own inbox.
//
//     STRATUM_NATS_URL=nats://127.0.0.1:4222 cargo run

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::TcpStream;

struct Connection {
    outgoing: TcpStream,
    incoming: BufReader<TcpStream>,
}

fn main() -> Result<()> {
    let url = std::env::var("STRATUM_NATS_URL").map_err(Error::other)?;
    let outgoing = TcpStream::connect(url.trim_start_matches("nats://"))?;
    let incoming = BufReader::new(outgoing.try_clone()?);
    let mut nats = Connection { outgoing, incoming };
    let options = r#"{"verbose":false,"headers":true,"no_responders":true}"#;
    write!(
        nats.outgoing,
        "CONNECT {options}\r\nSUB _INBOX.rust.* 1\r\n"
    )?;

    // Publish: stored when it is answered. The id makes sending it again harmless.
    let id = "Nats-Msg-Id: rust-1\r\n";
    println!(
        "{}",
        nats.request("inbox.research.rust.question", r#"{"q": "rust"}"#, id)?
    );

    // Receive: one message of the inbox, which is a durable consumer with the agent's name.
    let inbox = r#"{"stream_name": "LOG", "config": {"name": "rust", "durable_name": "rust",
        "ack_policy": "explicit", "filter_subjects": ["inbox.rust.>"]}}"#;
    nats.request("$JS.API.CONSUMER.CREATE.LOG.rust", inbox, "")?;
    let next = "$JS.API.CONSUMER.MSG.NEXT.LOG.rust";
    nats.publish(next, "_INBOX.rust.next", r#"{"batch": 1}"#, "")?;
    let (ack, message) = nats.receive()?;
    println!("{message}");
    nats.request(&ack, "+ACK", "")?; // here it would be handled first
    Ok(())
}

impl Connection {
    fn publish(&mut self, subject: &str, reply: &str, payload: &str, headers: &str) -> Result<()> {
        let head = format!("NATS/1.0\r\n{headers}\r\n");
        let (start, size) = (head.len(), head.len() + payload.len());
        write!(
            self.outgoing,
            "HPUB {subject} {reply} {start} {size}\r\n{head}{payload}\r\n"
        )
    }

    fn request(&mut self, subject: &str, payload: &str, headers: &str) -> Result<String> {
        self.publish(subject, "_INBOX.rust.answer", payload, headers)?;
        let (_, answer) = self.receive()?;
        if answer.contains("\"error\"") || answer.contains("NATS/1.0 503") {
            return Err(Error::other(format!("{subject} was refused: {answer}")));
        }
        Ok(answer)
    }

    /// The next message: its reply subject, and its headers and payload.
    fn receive(&mut self) -> Result<(String, String)> {
        loop {
            let mut line = String::new();
            if self.incoming.read_line(&mut line)? == 0 || line.starts_with("-ERR") {
                return Err(Error::other(format!("the server ended it: {line}")));
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[0] == "PING" {
                write!(self.outgoing, "PONG\r\n")?;
            } else if words[0].ends_with("MSG") {
                let size: usize = words[words.len() - 1].parse().map_err(Error::other)?;
                let mut payload = vec![0; size + 2]; // the size of what follows, and its line end
                self.incoming.read_exact(&mut payload)?;
                payload.truncate(size);
                return Ok((words[3].into(), String::from_utf8_lossy(&payload).into()));
            }
        }
    }
}
