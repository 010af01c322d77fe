package protocol_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// Storing a file, reading it, listing keys, and deleting it.
func Example() {
	client, err := protocol.NewClient(protocol.ClientOptions{
		Trackers: []string{"10.0.0.1:7001", "10.0.0.2:7001"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	created, err := client.Create(ctx, "photos", "cat.jpg", protocol.CreateOptions{Class: "originals"}, strings.NewReader("…"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("stored as fid", created.FID)

	r, err := client.Open(ctx, "photos", "cat.jpg")
	if errors.Is(err, protocol.ErrUnknownKey) {
		log.Fatal("no such photo")
	} else if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(os.Stdout, r); err != nil {
		log.Fatal(err)
	}

	for key, err := range client.Keys(ctx, "photos", "cat") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(key)
	}
	if err := client.Delete(ctx, "photos", "cat.jpg"); err != nil {
		log.Fatal(err)
	}
}

// Any command can be sent, and its refusals told apart.
func ExampleClient_Do() {
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: []string{"10.0.0.1"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	reply, err := client.Do(context.Background(), "file_debug", protocol.Args{{Name: "fid", Value: "42"}})
	if refusal, ok := errors.AsType[*protocol.Error](err); ok {
		fmt.Println("refused with", refusal.Code)
	}
	fmt.Println(reply.Get("fid_dkey"), reply.Number("fid_length"))
}

func ExampleFID_Path() {
	fmt.Println(protocol.FID(1234567).Path(7))
	// Output: dev7/0/001/234/0001234567.fid
}

func ExampleParseArgs() {
	args := protocol.ParseArgs("domain=photos&key=cat+%26+dog")
	fmt.Println(args.Get("key"))
	fmt.Println(args)
	// Output:
	// cat & dog
	// domain=photos&key=cat+%26+dog
}
