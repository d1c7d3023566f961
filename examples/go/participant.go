// The smallest participant in Go, with nothing but its standard library: it asks the agent
// `research` a question, and takes one message out of its own inbox.
//
//	STRATUM_NATS_URL=nats://127.0.0.1:4222 go run participant.go
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
)

type connection struct {
	net.Conn
	incoming *bufio.Reader
}

func main() {
	server, err := url.Parse(os.Getenv("STRATUM_NATS_URL"))
	must(err)
	socket, err := net.Dial("tcp", server.Host)
	must(err)
	nats := connection{socket, bufio.NewReader(socket)}
	fmt.Fprint(nats, `CONNECT {"verbose":false,"headers":true,"no_responders":true}`, "\r\n")
	fmt.Fprint(nats, "SUB _INBOX.go.* 1\r\n")

	// Publish: stored when it is answered. The id makes sending it again harmless.
	fmt.Println(nats.request("inbox.research.go.question", `{"q": "go"}`, "Nats-Msg-Id: go-1\r\n"))

	// Receive: one message of the inbox, which is a durable consumer with the agent's name.
	nats.request("$JS.API.CONSUMER.CREATE.LOG.go", `{"stream_name": "LOG", "config": {"name": "go",
		"durable_name": "go", "ack_policy": "explicit", "filter_subjects": ["inbox.go.>"]}}`, "")
	nats.publish("$JS.API.CONSUMER.MSG.NEXT.LOG.go", "_INBOX.go.next", `{"batch": 1}`, "")
	ack, message := nats.receive()
	fmt.Println(message)
	nats.request(ack, "+ACK", "") // here it would be handled first
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (nats connection) publish(subject, reply, payload, headers string) {
	head := "NATS/1.0\r\n" + headers + "\r\n"
	size := len(head) + len(payload)
	fmt.Fprintf(nats, "HPUB %s %s %d %d\r\n%s%s\r\n", subject, reply, len(head), size, head, payload)
}

func (nats connection) request(subject, payload, headers string) string {
	nats.publish(subject, "_INBOX.go.answer", payload, headers)
	_, answer := nats.receive()
	if strings.Contains(answer, `"error"`) || strings.Contains(answer, "NATS/1.0 503") {
		must(fmt.Errorf("%s was refused: %s", subject, answer))
	}
	return answer
}

// receive returns the next message: its reply subject, and its headers and payload.
func (nats connection) receive() (string, string) {
	for {
		line, err := nats.incoming.ReadString('\n')
		must(err)
		words := strings.Fields(line)
		switch {
		case words[0] == "PING":
			fmt.Fprint(nats, "PONG\r\n")
		case words[0] == "-ERR":
			must(fmt.Errorf("the server says %s", line))
		case strings.HasSuffix(words[0], "MSG"): // its last word is the size of what follows
			size, err := strconv.Atoi(words[len(words)-1])
			must(err)
			payload := make([]byte, size+2)
			_, err = io.ReadFull(nats.incoming, payload)
			must(err)
			return words[3], string(payload[:size])
		}
	}
}
