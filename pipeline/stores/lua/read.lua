-- after: fence, run, incarnation, opened
-- KEYS: lease, stream, books. ARGV: token, group, consumer, count, id ('>' for new entries, else own history after it), '1' where
-- replicas are waited for: that is until they have what this connection wrote last, so that reading history has to write, too.
local reply = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], ARGV[5])
if ARGV[5] == '>' then
  local entries = reply and reply[1][2] or {}
  if #entries < tonumber(ARGV[4]) then -- all there is: the count cannot drift
    local accepted, read = unpack(redis.call('HMGET', KEYS[3], 'accepted', 'read'))
    if (accepted or '0') ~= read then redis.call('HSET', KEYS[3], 'read', accepted or '0') end
  else
    local events = 0
    for _, entry in ipairs(entries) do
      local fields = entry[2] or {}
      for i = 1, #fields, 2 do
        local counted = (fields[i] == 'n' or fields[i] == 'm') and #fields[i + 1] < 10 and string.match(fields[i + 1], '^%d+$')
        if counted then events = events + tonumber(counted) end
      end
    end
    redis.call('HINCRBY', KEYS[3], 'read', string.format('%.0f', events))
  end
elseif ARGV[6] == '1' then
  redis.call('HINCRBY', KEYS[3], 'reread', 1)
end
return reply
