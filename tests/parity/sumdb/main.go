// Reads one JSON document on stdin, judges what Sawyer wrote with Go's own golang.org/x/mod/sumdb packages, and prints
// what those packages make of the same leaves. test_sumdb.py runs it. Nothing here is Sawyer's: the forms are public.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type input struct {
	Leaves      []string   // records, base64
	Inclusion   [][2]int64 // (index, size)
	Consistency [][2]int64 // (old size, new size)
	Seed        string     // of a key that Go signs a note with, base64
	Text        string     // what it signs
	Name        string     // as whom
	Notes       []signed   // judged by note.Open
	Proofs      []signed   // tlog-proof files
	Extensions  []extended // add-checkpoint bodies
}

type signed struct {
	VKeys []string
	Text  string
}

type extended struct {
	signed
	OldRoot string // base64
}

type output struct {
	Inclusion   [][]string
	Consistency [][]string
	Roots       []string // of the sizes of Consistency, old then new
	Note        string
	VKey        string
	Notes       []string // names whose signatures verified, or the error
	Proofs      []string // "ok", or the error
	Extensions  []string
}

func main() {
	log.SetFlags(0)
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		log.Fatal(err)
	}
	out := output{}
	out.trees(in)
	out.sign(in)
	for _, each := range in.Notes {
		out.Notes = append(out.Notes, openNote(each))
	}
	for _, each := range in.Proofs {
		out.Proofs = append(out.Proofs, verdict(checkProof(each)))
	}
	for _, each := range in.Extensions {
		out.Extensions = append(out.Extensions, verdict(checkExtension(each)))
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		log.Fatal(err)
	}
}

func verdict(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// trees builds Go's tree over the leaves and asks it for the same proofs.
func (out *output) trees(in input) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = stored[index]
		}
		return found, nil
	})
	for n, leaf := range in.Leaves {
		hashes, err := tlog.StoredHashes(int64(n), unbase64(leaf), reader)
		if err != nil {
			log.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	for _, each := range in.Inclusion {
		proof, err := tlog.ProveRecord(each[1], each[0], reader)
		if err != nil {
			log.Fatal(err)
		}
		out.Inclusion = append(out.Inclusion, texts(proof))
	}
	for _, each := range in.Consistency {
		proof, err := tlog.ProveTree(each[1], each[0], reader)
		if err != nil {
			log.Fatal(err)
		}
		out.Consistency = append(out.Consistency, texts(proof))
		for _, size := range each {
			root, err := tlog.TreeHash(size, reader)
			if err != nil {
				log.Fatal(err)
			}
			out.Roots = append(out.Roots, root.String())
		}
	}
}

// sign makes a note with Go's signer, for Sawyer to verify.
func (out *output) sign(in input) {
	key := ed25519.NewKeyFromSeed(unbase64(in.Seed))
	public := append([]byte{1}, key.Public().(ed25519.PublicKey)...)
	hash := sha256.Sum256(append([]byte(in.Name+"\n"), public...))
	id := fmt.Sprintf("%08x", binary.BigEndian.Uint32(hash[:4]))
	seed := append([]byte{1}, key.Seed()...)
	signer, err := note.NewSigner("PRIVATE+KEY+" + in.Name + "+" + id + "+" + base64.StdEncoding.EncodeToString(seed))
	if err != nil {
		log.Fatal(err)
	}
	made, err := note.Sign(&note.Note{Text: in.Text}, signer)
	if err != nil {
		log.Fatal(err)
	}
	out.Note = string(made)
	out.VKey = in.Name + "+" + id + "+" + base64.StdEncoding.EncodeToString(public)
}

func openNote(each signed) string {
	opened, err := note.Open([]byte(each.Text), verifiers(each.VKeys))
	if err != nil {
		return err.Error()
	}
	names := []string{}
	for _, signature := range opened.Sigs {
		names = append(names, signature.Name)
	}
	return strings.Join(names, " ")
}

// checkProof reads a tlog-proof file (c2sp.org/tlog-proof) whose extra data are the record itself.
func checkProof(each signed) error {
	head, rest, found := strings.Cut(each.Text, "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a tlog-proof")
	}
	record := unbase64(strings.TrimPrefix(lines[1], "extra "))
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	size, root, err := head3(rest, each.VKeys)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(hashes(lines[3:]), size, root, index, tlog.RecordHash(record))
}

// checkExtension reads the body of an add-checkpoint request (c2sp.org/tlog-witness).
func checkExtension(each extended) error {
	head, rest, found := strings.Cut(each.Text, "\n\n")
	lines := strings.Split(head, "\n")
	if !found {
		return errors.New("not an add-checkpoint request")
	}
	old, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "old "), 10, 64)
	if err != nil {
		return err
	}
	size, root, err := head3(rest, each.VKeys)
	if err != nil {
		return err
	}
	var oldRoot tlog.Hash
	copy(oldRoot[:], unbase64(each.OldRoot))
	return tlog.CheckTree(hashes(lines[1:]), size, root, old, oldRoot)
}

// head3 opens a checkpoint and reads its three lines (c2sp.org/tlog-checkpoint).
func head3(text string, vkeys []string) (int64, tlog.Hash, error) {
	opened, err := note.Open([]byte(text), verifiers(vkeys))
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, tlog.Hash{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return size, root, err
}

func verifiers(vkeys []string) note.Verifiers {
	var known []note.Verifier
	for _, vkey := range vkeys {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			verifier = newCosigner(vkey)
		}
		known = append(known, verifier)
	}
	return note.VerifierList(known...)
}

// cosigner verifies timestamped Ed25519 cosignatures, as c2sp.org/tlog-cosignature describes them; the package knows
// only plain Ed25519 keys, and takes any note.Verifier.
type cosigner struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

func newCosigner(vkey string) *cosigner {
	parts := strings.SplitN(vkey, "+", 3)
	raw := unbase64(parts[2])
	if raw[0] != 4 || len(raw) != 33 {
		log.Fatalf("not a cosigner's key: %s", vkey)
	}
	hash := sha256.Sum256(append([]byte(parts[0]+"\n"), raw...))
	return &cosigner{parts[0], binary.BigEndian.Uint32(hash[:4]), ed25519.PublicKey(raw[1:])}
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }
func (c *cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	stamped := fmt.Sprintf("cosignature/v1\ntime %d\n", binary.BigEndian.Uint64(sig))
	return ed25519.Verify(c.public, bytes.Join([][]byte{[]byte(stamped), msg}, nil), sig[8:])
}

func hashes(lines []string) []tlog.Hash {
	found := []tlog.Hash{}
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			log.Fatal(err)
		}
		found = append(found, hash)
	}
	return found
}

func texts(hashes []tlog.Hash) []string {
	found := []string{}
	for _, hash := range hashes {
		found = append(found, hash.String())
	}
	return found
}

func unbase64(text string) []byte {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		log.Fatal(err)
	}
	return raw
}
